#include "core/simt/launch.cuh"
#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/launch.h"
#include "ops/varlen-attention/prepare.h"

namespace varlen::varlen_attention {
namespace {

template <class Kernel>
cudaError_t LaunchKernel(int blocks, const typename Kernel::Params& params, cudaStream_t stream) {
  const auto entry = simt::Entry<Kernel>;
  const cudaError_t error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 Kernel::kSharedBytes);
  if (error != cudaSuccess) return error;
  entry<<<blocks, Kernel::kThreads, Kernel::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

// As many blocks as the device holds at once; each takes tiles until there are none.
template <class Kernel>
cudaError_t LaunchPersistent(int multiprocessors, const typename Kernel::Params& params,
                             cudaStream_t stream) {
  int per_multiprocessor = 0;
  const auto entry = simt::Entry<Kernel>;
  cudaError_t error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Kernel::kSharedBytes);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, entry,
                                                        Kernel::kThreads, Kernel::kSharedBytes);
  if (error != cudaSuccess) return error;
  return LaunchKernel<Kernel>(multiprocessors * per_multiprocessor, params, stream);
}

template <class T, int kHeadDim>
cudaError_t LaunchBoth(int multiprocessors, const ForwardArguments<T>& params,
                       cudaStream_t stream) {
  using Kernel = ForwardSm80<T, kHeadDim>;
  const Prepare::Params prepare{params.sequences,
                                params.mask,
                                params.schedule,
                                params.num_kv_heads,
                                params.num_heads / params.num_kv_heads,
                                Kernel::kBlockM,
                                Kernel::kBlockN};
  const cudaError_t error = LaunchKernel<Prepare>(1, prepare, stream);
  if (error != cudaSuccess) return error;
  return LaunchPersistent<Kernel>(multiprocessors, params, stream);
}

template <class T>
cudaError_t Launch(int multiprocessors, const ForwardArguments<T>& params, cudaStream_t stream) {
  if (params.head_dim <= 64) return LaunchBoth<T, 64>(multiprocessors, params, stream);
  if (params.head_dim <= 96) return LaunchBoth<T, 96>(multiprocessors, params, stream);
  if (params.head_dim <= 128) return LaunchBoth<T, 128>(multiprocessors, params, stream);
  if (params.head_dim <= 192) return LaunchBoth<T, 192>(multiprocessors, params, stream);
  return LaunchBoth<T, 256>(multiprocessors, params, stream);
}

}  // namespace

int LaunchForwardSm80(int multiprocessors, const ForwardArguments<bfloat16>& params, void* stream) {
  return Launch(multiprocessors, params, static_cast<cudaStream_t>(stream));
}
int LaunchForwardSm80(int multiprocessors, const ForwardArguments<half>& params, void* stream) {
  return Launch(multiprocessors, params, static_cast<cudaStream_t>(stream));
}

}  // namespace varlen::varlen_attention
