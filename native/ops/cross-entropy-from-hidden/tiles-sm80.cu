#include "core/linear-logits-launch.cuh"
#include "ops/cross-entropy-from-hidden/launch.h"

namespace varlen::cross_entropy_from_hidden {

template <class T>
int LaunchForward(int multiprocessors, const DeviceLinearLogits<T>& head,
                  const CrossEntropySink& sink, const CrossEntropyTotals::Params& totals,
                  double* found, const LinearWorkspace<T>& workspace, void* stream) {
  const CudaLauncher launch{multiprocessors, static_cast<cudaStream_t>(stream)};
  cudaError_t error = launch.operator()<DeviceTargetCheck>(
      1, {totals.mask, totals.weights, head.targets, head.total_tokens, head.vocab_size, found});
  if (error != cudaSuccess) return error;
  error = LaunchLinearStatistics(head, {totals.mask, totals.weights}, sink, workspace,
                                 LinearChunks{}, cudaSuccess, launch);
  if (error != cudaSuccess) return error;
  return launch.operator()<CrossEntropyTotals>(1, totals);
}

template <class T>
int LaunchBackward(int multiprocessors, const CrossEntropyTotals::Params& totals,
                   const DeviceLinearLogits<T>& head, const CrossEntropySource& source,
                   const DeviceLinearGradients<T>& gradients, const LinearWorkspace<T>& workspace,
                   void* stream) {
  const CudaLauncher launch{multiprocessors, static_cast<cudaStream_t>(stream)};
  const cudaError_t error = launch.operator()<CrossEntropyTotals>(1, totals);
  if (error != cudaSuccess) return error;
  return LaunchLinearGradients(head, source, source.lse, gradients, workspace, LinearChunks{},
                               cudaSuccess, launch);
}

template int LaunchForward(int, const DeviceLinearLogits<float>&, const CrossEntropySink&,
                           const CrossEntropyTotals::Params&, double*,
                           const LinearWorkspace<float>&, void*);
template int LaunchForward(int, const DeviceLinearLogits<bfloat16>&, const CrossEntropySink&,
                           const CrossEntropyTotals::Params&, double*,
                           const LinearWorkspace<bfloat16>&, void*);
template int LaunchForward(int, const DeviceLinearLogits<half>&, const CrossEntropySink&,
                           const CrossEntropyTotals::Params&, double*, const LinearWorkspace<half>&,
                           void*);
template int LaunchBackward(int, const CrossEntropyTotals::Params&,
                            const DeviceLinearLogits<float>&, const CrossEntropySource&,
                            const DeviceLinearGradients<float>&, const LinearWorkspace<float>&,
                            void*);
template int LaunchBackward(int, const CrossEntropyTotals::Params&,
                            const DeviceLinearLogits<bfloat16>&, const CrossEntropySource&,
                            const DeviceLinearGradients<bfloat16>&,
                            const LinearWorkspace<bfloat16>&, void*);
template int LaunchBackward(int, const CrossEntropyTotals::Params&, const DeviceLinearLogits<half>&,
                            const CrossEntropySource&, const DeviceLinearGradients<half>&,
                            const LinearWorkspace<half>&, void*);

}  // namespace varlen::cross_entropy_from_hidden
