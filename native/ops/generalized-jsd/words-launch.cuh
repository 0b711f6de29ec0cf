#pragma once

#include "core/simt/launch-capped.cuh"
#include "ops/generalized-jsd/launch.h"

// One file per dtype of the student: nine kernels in one take the compiler too long.
namespace varlen::generalized_jsd {

template <class S, class T>
int LaunchWordForward(int multiprocessors, const typename DeviceWordDivergence<S, T>::Params& rows,
                      const DeviceWeights::Params& weights, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      simt::LaunchCapped<DeviceWordDivergence<S, T>>(multiprocessors, rows.in.num_rows, rows, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<DeviceWeights>(multiprocessors, 1, weights, on);
}

template <class S>
int LaunchWordBackward(int multiprocessors,
                       const typename DeviceWordGradients<S>::Params& gradients, void* stream) {
  return simt::LaunchCapped<DeviceWordGradients<S>>(multiprocessors, gradients.num_rows, gradients,
                                                    static_cast<cudaStream_t>(stream));
}

#define VARLEN_JSD_WORDS(S)                                                                        \
  template int LaunchWordForward<S, float>(int, const DeviceWordDivergence<S, float>::Params&,     \
                                           const DeviceWeights::Params&, void*);                   \
  template int LaunchWordForward<S, bfloat16>(                                                     \
      int, const DeviceWordDivergence<S, bfloat16>::Params&, const DeviceWeights::Params&, void*); \
  template int LaunchWordForward<S, half>(int, const DeviceWordDivergence<S, half>::Params&,       \
                                          const DeviceWeights::Params&, void*);                    \
  template int LaunchWordBackward<S>(int, const DeviceWordGradients<S>::Params&, void*)

}  // namespace varlen::generalized_jsd
