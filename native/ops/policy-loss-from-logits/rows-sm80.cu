#include "core/simt/launch-capped.cuh"
#include "ops/policy-loss-from-logits/launch.h"

namespace varlen::policy_loss_from_logits {

template <class T>
int LaunchRowStatistics(int multiprocessors, const typename LossRows<T>::Params& params,
                        const DeviceTargetCheck::Params& check, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error = simt::LaunchCapped<DeviceTargetCheck>(multiprocessors, 1, check, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<LossRows<T>>(multiprocessors, params.in.num_rows, params, on);
}

template <class T>
int LaunchRowGradients(int multiprocessors, const typename RowGradients<T>::Params& params,
                       void* stream) {
  return simt::LaunchCapped<RowGradients<T>>(multiprocessors, params.in.num_rows, params,
                                             static_cast<cudaStream_t>(stream));
}

template int LaunchRowStatistics<float>(int, const LossRows<float>::Params&,
                                        const DeviceTargetCheck::Params&, void*);
template int LaunchRowStatistics<bfloat16>(int, const LossRows<bfloat16>::Params&,
                                           const DeviceTargetCheck::Params&, void*);
template int LaunchRowStatistics<half>(int, const LossRows<half>::Params&,
                                       const DeviceTargetCheck::Params&, void*);
template int LaunchRowGradients<float>(int, const RowGradients<float>::Params&, void*);
template int LaunchRowGradients<bfloat16>(int, const RowGradients<bfloat16>::Params&, void*);
template int LaunchRowGradients<half>(int, const RowGradients<half>::Params&, void*);

}  // namespace varlen::policy_loss_from_logits
