#include "core/cuda/link.cuh"
#include "ops/varlen-attention/kernels.h"

namespace varlen::varlen_attention {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(QueryGradientSm80Kernels<float>{});
}
}  // namespace varlen::varlen_attention
