#include "core/cuda/link.cuh"
#include "ops/fused-linear-jsd/kernels.h"

namespace varlen::fused_linear_jsd {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Sm80Kernels{});
}
}  // namespace varlen::fused_linear_jsd
