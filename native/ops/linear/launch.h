#pragma once

#include "ops/linear/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::linear {

template <class T>
int LaunchForward(int multiprocessors, const typename DeviceForward<T>::Params& params,
                  void* stream);
template <class T>
int LaunchInputGradients(int multiprocessors,
                         const typename DeviceInputGradients<T>::Params& params, void* stream);
template <class T>
int LaunchWeightGradients(int multiprocessors,
                          const typename DeviceWeightGradients<T>::Params& params, void* stream);
// Sums of groups of rows, then their totals.
template <class T>
int LaunchBiasSums(int multiprocessors, const typename BiasSums<T>::Params& params, void* stream);
int LaunchBiasTotals(int multiprocessors, const DeviceColumnTotals::Params& params, void* stream);

}  // namespace varlen::linear
