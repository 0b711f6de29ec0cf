#pragma once

#include "ops/generalized-jsd/device.h"

// The launches of this op's kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's. S and T: dtypes of student and teacher.
namespace varlen::generalized_jsd {

template <class S, class T>
int LaunchForward(int multiprocessors, const typename DeviceDivergence<S, T>::Params& rows,
                  const DeviceWeights::Params& weights, void* stream);
template <class S, class T>
int LaunchBackward(int multiprocessors,
                   const typename DeviceDivergenceGradients<S, T>::Params& gradients, void* stream);

}  // namespace varlen::generalized_jsd
