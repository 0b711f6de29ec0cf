#include "core/simt/launch-capped.cuh"
#include "ops/write-rows/launch.h"

namespace varlen::write_rows {

int LaunchChains(int multiprocessors, const DeviceTokenChains::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceTokenChains>(multiprocessors, 1, params,
                                               static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchWriteRows(int multiprocessors, const typename DeviceWriteRows<T>::Params& params,
                    void* stream) {
  return simt::LaunchCapped<DeviceWriteRows<T>>(
      multiprocessors,
      (params.num_tokens + DeviceWriteRows<T>::kWarps - 1) / DeviceWriteRows<T>::kWarps, params,
      static_cast<cudaStream_t>(stream));
}

template int LaunchWriteRows<float>(int, const DeviceWriteRows<float>::Params&, void*);
template int LaunchWriteRows<bfloat16>(int, const DeviceWriteRows<bfloat16>::Params&, void*);
template int LaunchWriteRows<half>(int, const DeviceWriteRows<half>::Params&, void*);

}  // namespace varlen::write_rows
