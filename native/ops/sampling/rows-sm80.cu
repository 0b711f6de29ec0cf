#include "core/simt/launch-capped.cuh"
#include "ops/sampling/launch.h"

namespace varlen::sampling {

template <class T>
int LaunchSample(int multiprocessors, const typename DeviceSample<T>::Params& params, double* found,
                 void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      simt::LaunchCapped<DeviceSample<T>>(multiprocessors, params.num_rows, params, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<DeviceBadRows>(multiprocessors, 1,
                                           {params.tokens, params.num_rows, found}, on);
}

template int LaunchSample<float>(int, const DeviceSample<float>::Params&, double*, void*);
template int LaunchSample<bfloat16>(int, const DeviceSample<bfloat16>::Params&, double*, void*);
template int LaunchSample<half>(int, const DeviceSample<half>::Params&, double*, void*);

}  // namespace varlen::sampling
