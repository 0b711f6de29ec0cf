#include "core/simt/launch-capped.cuh"
#include "ops/generalized-jsd/launch.h"

namespace varlen::generalized_jsd {

template <class S, class T>
int LaunchBackward(int multiprocessors,
                   const typename DeviceDivergenceGradients<S, T>::Params& gradients,
                   void* stream) {
  return simt::LaunchCapped<DeviceDivergenceGradients<S, T>>(
      multiprocessors, gradients.in.num_rows, gradients, static_cast<cudaStream_t>(stream));
}

#define VARLEN_JSD_BACKWARD(S, T) \
  template int LaunchBackward<S, T>(int, const DeviceDivergenceGradients<S, T>::Params&, void*)
VARLEN_JSD_BACKWARD(float, float);
VARLEN_JSD_BACKWARD(float, bfloat16);
VARLEN_JSD_BACKWARD(float, half);
VARLEN_JSD_BACKWARD(bfloat16, float);
VARLEN_JSD_BACKWARD(bfloat16, bfloat16);
VARLEN_JSD_BACKWARD(bfloat16, half);
VARLEN_JSD_BACKWARD(half, float);
VARLEN_JSD_BACKWARD(half, bfloat16);
VARLEN_JSD_BACKWARD(half, half);

}  // namespace varlen::generalized_jsd
