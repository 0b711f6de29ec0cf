#include "core/simt/launch-capped.cuh"
#include "ops/rope/launch.h"

namespace varlen::rope {

template <class T>
int LaunchRotate(int multiprocessors, const typename DeviceRotate<T>::Params& params,
                 void* stream) {
  return simt::LaunchCapped<DeviceRotate<T>>(multiprocessors, DeviceRotate<T>::BlocksFor(params),
                                             params, static_cast<cudaStream_t>(stream));
}

template int LaunchRotate<float>(int, const DeviceRotate<float>::Params&, void*);
template int LaunchRotate<bfloat16>(int, const DeviceRotate<bfloat16>::Params&, void*);
template int LaunchRotate<half>(int, const DeviceRotate<half>::Params&, void*);

}  // namespace varlen::rope
