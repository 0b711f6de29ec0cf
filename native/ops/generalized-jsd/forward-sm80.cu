#include "core/simt/launch-capped.cuh"
#include "ops/generalized-jsd/launch.h"

namespace varlen::generalized_jsd {

template <class S, class T>
int LaunchForward(int multiprocessors, const typename DeviceDivergence<S, T>::Params& rows,
                  const DeviceWeights::Params& weights, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      simt::LaunchCapped<DeviceDivergence<S, T>>(multiprocessors, rows.in.num_rows, rows, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<DeviceWeights>(multiprocessors, 1, weights, on);
}

#define VARLEN_JSD_FORWARD(S, T)                                               \
  template int LaunchForward<S, T>(int, const DeviceDivergence<S, T>::Params&, \
                                   const DeviceWeights::Params&, void*)
VARLEN_JSD_FORWARD(float, float);
VARLEN_JSD_FORWARD(float, bfloat16);
VARLEN_JSD_FORWARD(float, half);
VARLEN_JSD_FORWARD(bfloat16, float);
VARLEN_JSD_FORWARD(bfloat16, bfloat16);
VARLEN_JSD_FORWARD(bfloat16, half);
VARLEN_JSD_FORWARD(half, float);
VARLEN_JSD_FORWARD(half, bfloat16);
VARLEN_JSD_FORWARD(half, half);

}  // namespace varlen::generalized_jsd
