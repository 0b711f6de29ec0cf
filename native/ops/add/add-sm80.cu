#include "core/simt/launch-capped.cuh"
#include "ops/add/launch.h"

namespace varlen::add {

template <class T>
int LaunchSum(int multiprocessors, const typename DeviceSum<T>::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceSum<T>>(multiprocessors, DeviceSum<T>::BlocksFor(params.size),
                                          params, static_cast<cudaStream_t>(stream));
}

template int LaunchSum<float>(int, const DeviceSum<float>::Params&, void*);
template int LaunchSum<bfloat16>(int, const DeviceSum<bfloat16>::Params&, void*);
template int LaunchSum<half>(int, const DeviceSum<half>::Params&, void*);

}  // namespace varlen::add
