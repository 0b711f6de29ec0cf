#include "core/loss/device.h"
#include "core/loss/launch.h"
#include "core/simt/launch-capped.cuh"

namespace varlen::loss {
namespace {

template <class T>
cudaError_t LaunchAll(int multiprocessors, const DeviceArguments& arguments, cudaStream_t stream) {
  return LaunchPasses<T>(arguments, cudaSuccess,
                         [&]<class Kernel>(int64_t items, const DeviceArguments& p) {
                           constexpr int kWarps = Kernel::kThreads / simt::kWarpSize;
                           return simt::LaunchCapped<Kernel>(
                               multiprocessors, (items + kWarps - 1) / kWarps, p, stream);
                         });
}

template <class T>
cudaError_t LaunchScaleOf(int multiprocessors, const float* d_loss, const float* d_logprobs,
                          int64_t n, void* gradient, cudaStream_t stream) {
  using Kernel = DeviceScale<T>;
  return simt::LaunchCapped<Kernel>(multiprocessors, (n + Kernel::kThreads - 1) / Kernel::kThreads,
                                    {d_loss, d_logprobs, static_cast<T*>(gradient), n}, stream);
}

}  // namespace

int LaunchLoss(int multiprocessors, const DeviceArguments& arguments, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (arguments.in.logprobs_dtype) {
    case DType::kBF16:
      return LaunchAll<bfloat16>(multiprocessors, arguments, on);
    case DType::kF16:
      return LaunchAll<half>(multiprocessors, arguments, on);
    default:
      return LaunchAll<float>(multiprocessors, arguments, on);
  }
}

int LaunchScale(int multiprocessors, const float* d_loss, const float* d_logprobs, int64_t n,
                void* gradient, DType dtype, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::kBF16:
      return LaunchScaleOf<bfloat16>(multiprocessors, d_loss, d_logprobs, n, gradient, on);
    case DType::kF16:
      return LaunchScaleOf<half>(multiprocessors, d_loss, d_logprobs, n, gradient, on);
    default:
      return LaunchScaleOf<float>(multiprocessors, d_loss, d_logprobs, n, gradient, on);
  }
}

}  // namespace varlen::loss
