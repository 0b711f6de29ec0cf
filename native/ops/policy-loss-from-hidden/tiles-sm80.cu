#include "core/linear-logits-launch.cuh"
#include "ops/policy-loss-from-hidden/launch.h"

namespace varlen::policy_loss_from_hidden {

template <class T>
int LaunchRowStatistics(int multiprocessors, const DeviceLinearLogits<T>& head,
                        const uint8_t* loss_mask, const LossRowSink& sink, double* found,
                        const LinearWorkspace<T>& workspace, void* stream) {
  const CudaLauncher launch{multiprocessors, static_cast<cudaStream_t>(stream)};
  const cudaError_t error = launch.operator()<DeviceTargetCheck>(
      1, {loss_mask, nullptr, head.targets, head.total_tokens, head.vocab_size, found});
  if (error != cudaSuccess) return error;
  return LaunchLinearStatistics(head, {loss_mask, nullptr}, sink, workspace, LinearChunks{},
                                cudaSuccess, launch);
}

template <class T>
int LaunchGradients(int multiprocessors, const DeviceLinearLogits<T>& head, const RowSource& source,
                    const double* lse, const DeviceLinearGradients<T>& gradients,
                    const LinearWorkspace<T>& workspace, void* stream) {
  const CudaLauncher launch{multiprocessors, static_cast<cudaStream_t>(stream)};
  return LaunchLinearGradients(head, source, lse, gradients, workspace, LinearChunks{}, cudaSuccess,
                               launch);
}

template int LaunchRowStatistics(int, const DeviceLinearLogits<float>&, const uint8_t*,
                                 const LossRowSink&, double*, const LinearWorkspace<float>&, void*);
template int LaunchRowStatistics(int, const DeviceLinearLogits<bfloat16>&, const uint8_t*,
                                 const LossRowSink&, double*, const LinearWorkspace<bfloat16>&,
                                 void*);
template int LaunchRowStatistics(int, const DeviceLinearLogits<half>&, const uint8_t*,
                                 const LossRowSink&, double*, const LinearWorkspace<half>&, void*);
template int LaunchGradients(int, const DeviceLinearLogits<float>&, const RowSource&, const double*,
                             const DeviceLinearGradients<float>&, const LinearWorkspace<float>&,
                             void*);
template int LaunchGradients(int, const DeviceLinearLogits<bfloat16>&, const RowSource&,
                             const double*, const DeviceLinearGradients<bfloat16>&,
                             const LinearWorkspace<bfloat16>&, void*);
template int LaunchGradients(int, const DeviceLinearLogits<half>&, const RowSource&, const double*,
                             const DeviceLinearGradients<half>&, const LinearWorkspace<half>&,
                             void*);

}  // namespace varlen::policy_loss_from_hidden
