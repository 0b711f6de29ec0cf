#include "core/simt/launch-capped.cuh"
#include "ops/linear/launch.h"

namespace varlen::linear {

template <class T>
int LaunchForward(int multiprocessors, const typename DeviceForward<T>::Params& params,
                  void* stream) {
  return simt::LaunchCapped<DeviceForward<T>>(multiprocessors, DeviceForward<T>::BlocksFor(params),
                                              params, static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchInputGradients(int multiprocessors,
                         const typename DeviceInputGradients<T>::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceInputGradients<T>>(multiprocessors,
                                                     DeviceInputGradients<T>::BlocksFor(params),
                                                     params, static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchWeightGradients(int multiprocessors,
                          const typename DeviceWeightGradients<T>::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceWeightGradients<T>>(multiprocessors,
                                                      DeviceWeightGradients<T>::BlocksFor(params),
                                                      params, static_cast<cudaStream_t>(stream));
}

template <class T>
int LaunchBiasSums(int multiprocessors, const typename BiasSums<T>::Params& params, void* stream) {
  return simt::LaunchCapped<BiasSums<T>>(multiprocessors, BiasSums<T>::BlocksFor(params), params,
                                         static_cast<cudaStream_t>(stream));
}

int LaunchBiasTotals(int multiprocessors, const DeviceColumnTotals::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceColumnTotals>(
      multiprocessors,
      (params.num_columns + DeviceColumnTotals::kThreads - 1) / DeviceColumnTotals::kThreads,
      params, static_cast<cudaStream_t>(stream));
}

template int LaunchForward<float>(int, const DeviceForward<float>::Params&, void*);
template int LaunchForward<bfloat16>(int, const DeviceForward<bfloat16>::Params&, void*);
template int LaunchForward<half>(int, const DeviceForward<half>::Params&, void*);
template int LaunchInputGradients<float>(int, const DeviceInputGradients<float>::Params&, void*);
template int LaunchInputGradients<bfloat16>(int, const DeviceInputGradients<bfloat16>::Params&,
                                            void*);
template int LaunchInputGradients<half>(int, const DeviceInputGradients<half>::Params&, void*);
template int LaunchWeightGradients<float>(int, const DeviceWeightGradients<float>::Params&, void*);
template int LaunchWeightGradients<bfloat16>(int, const DeviceWeightGradients<bfloat16>::Params&,
                                             void*);
template int LaunchWeightGradients<half>(int, const DeviceWeightGradients<half>::Params&, void*);
template int LaunchBiasSums<float>(int, const BiasSums<float>::Params&, void*);
template int LaunchBiasSums<bfloat16>(int, const BiasSums<bfloat16>::Params&, void*);
template int LaunchBiasSums<half>(int, const BiasSums<half>::Params&, void*);

}  // namespace varlen::linear
