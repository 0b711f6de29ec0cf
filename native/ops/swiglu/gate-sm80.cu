#include "core/simt/launch-capped.cuh"
#include "ops/swiglu/launch.h"

namespace varlen::swiglu {

template <class T>
int LaunchGate(int multiprocessors, const typename DeviceGate<T>::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceGate<T>>(multiprocessors, DeviceGate<T>::BlocksFor(params.size),
                                           params, static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchGateGradients(int multiprocessors, const typename DeviceGateGradients<T>::Params& params,
                        void* stream) {
  return simt::LaunchCapped<DeviceGateGradients<T>>(multiprocessors,
                                                    DeviceGateGradients<T>::BlocksFor(params.size),
                                                    params, static_cast<cudaStream_t>(stream));
}

template int LaunchGate<float>(int, const DeviceGate<float>::Params&, void*);
template int LaunchGate<bfloat16>(int, const DeviceGate<bfloat16>::Params&, void*);
template int LaunchGate<half>(int, const DeviceGate<half>::Params&, void*);
template int LaunchGateGradients<float>(int, const DeviceGateGradients<float>::Params&, void*);
template int LaunchGateGradients<bfloat16>(int, const DeviceGateGradients<bfloat16>::Params&,
                                           void*);
template int LaunchGateGradients<half>(int, const DeviceGateGradients<half>::Params&, void*);

}  // namespace varlen::swiglu
