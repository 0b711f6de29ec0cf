#include "core/simt/launch-capped.cuh"
#include "ops/rms-norm/launch.h"

namespace varlen::rms_norm {

template <class T>
int LaunchNormalize(int multiprocessors, const typename DeviceNormalize<T>::Params& params,
                    void* stream) {
  return simt::LaunchCapped<DeviceNormalize<T>>(multiprocessors, params.num_rows, params,
                                                static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchNormGradients(int multiprocessors, const typename DeviceNormGradients<T>::Params& params,
                        void* stream) {
  return simt::LaunchCapped<DeviceNormGradients<T>>(multiprocessors, params.num_rows, params,
                                                    static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchWeightSums(int multiprocessors, const typename WeightSums<T>::Params& params,
                     void* stream) {
  return simt::LaunchCapped<WeightSums<T>>(multiprocessors, WeightSums<T>::BlocksFor(params),
                                           params, static_cast<cudaStream_t>(stream));
}

int LaunchWeightTotals(int multiprocessors, const DeviceColumnTotals::Params& params,
                       void* stream) {
  return simt::LaunchCapped<DeviceColumnTotals>(
      multiprocessors,
      (params.num_columns + DeviceColumnTotals::kThreads - 1) / DeviceColumnTotals::kThreads,
      params, static_cast<cudaStream_t>(stream));
}

template int LaunchNormalize<float>(int, const DeviceNormalize<float>::Params&, void*);
template int LaunchNormalize<bfloat16>(int, const DeviceNormalize<bfloat16>::Params&, void*);
template int LaunchNormalize<half>(int, const DeviceNormalize<half>::Params&, void*);
template int LaunchNormGradients<float>(int, const DeviceNormGradients<float>::Params&, void*);
template int LaunchNormGradients<bfloat16>(int, const DeviceNormGradients<bfloat16>::Params&,
                                           void*);
template int LaunchNormGradients<half>(int, const DeviceNormGradients<half>::Params&, void*);
template int LaunchWeightSums<float>(int, const WeightSums<float>::Params&, void*);
template int LaunchWeightSums<bfloat16>(int, const WeightSums<bfloat16>::Params&, void*);
template int LaunchWeightSums<half>(int, const WeightSums<half>::Params&, void*);

}  // namespace varlen::rms_norm
