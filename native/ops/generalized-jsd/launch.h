#pragma once

#include "ops/generalized-jsd/words-device.h"

// The launches of this op's kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's. S and T: dtypes of student and teacher.
namespace varlen::generalized_jsd {

template <class S, class T>
int LaunchForward(int multiprocessors, const typename DeviceDivergence<S, T>::Params& rows,
                  const DeviceWeights::Params& weights, void* stream);
template <class S, class T>
int LaunchBackward(int multiprocessors,
                   const typename DeviceDivergenceGradients<S, T>::Params& gradients, void* stream);

// Over some words; `rows` fills what `weights` reads.
template <class S, class T>
int LaunchWordForward(int multiprocessors, const typename DeviceWordDivergence<S, T>::Params& rows,
                      const DeviceWeights::Params& weights, void* stream);
template <class S>
int LaunchWordBackward(int multiprocessors,
                       const typename DeviceWordGradients<S>::Params& gradients, void* stream);

}  // namespace varlen::generalized_jsd
