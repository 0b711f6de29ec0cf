#pragma once

#include "ops/rms-norm/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::rms_norm {

template <class T>
int LaunchNormalize(int multiprocessors, const typename DeviceNormalize<T>::Params& params,
                    void* stream);
template <class T>
int LaunchNormGradients(int multiprocessors, const typename DeviceNormGradients<T>::Params& params,
                        void* stream);
// Sums of groups of rows, then their totals.
template <class T>
int LaunchWeightSums(int multiprocessors, const typename WeightSums<T>::Params& params,
                     void* stream);
int LaunchWeightTotals(int multiprocessors, const DeviceColumnTotals::Params& params, void* stream);

}  // namespace varlen::rms_norm
