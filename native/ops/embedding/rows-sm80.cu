#include "core/simt/launch-capped.cuh"
#include "ops/embedding/launch.h"

namespace varlen::embedding {

template <class T>
int LaunchLookup(int multiprocessors, const typename DeviceLookup<T>::Params& params,
                 void* stream) {
  return simt::LaunchCapped<DeviceLookup<T>>(
      multiprocessors, (params.num_tokens + DeviceLookup<T>::kWarps - 1) / DeviceLookup<T>::kWarps,
      params, static_cast<cudaStream_t>(stream));
}

int LaunchChains(int multiprocessors, const DeviceTokenChains::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceTokenChains>(multiprocessors, 1, params,
                                               static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchWordGradients(int multiprocessors, const typename DeviceWordGradients<T>::Params& params,
                        void* stream) {
  return simt::LaunchCapped<DeviceWordGradients<T>>(multiprocessors, params.vocab_size, params,
                                                    static_cast<cudaStream_t>(stream));
}

template int LaunchLookup<float>(int, const DeviceLookup<float>::Params&, void*);
template int LaunchLookup<bfloat16>(int, const DeviceLookup<bfloat16>::Params&, void*);
template int LaunchLookup<half>(int, const DeviceLookup<half>::Params&, void*);
template int LaunchWordGradients<float>(int, const DeviceWordGradients<float>::Params&, void*);
template int LaunchWordGradients<bfloat16>(int, const DeviceWordGradients<bfloat16>::Params&,
                                           void*);
template int LaunchWordGradients<half>(int, const DeviceWordGradients<half>::Params&, void*);

}  // namespace varlen::embedding
