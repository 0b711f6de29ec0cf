#include "core/cuda/link.cuh"
#include "ops/varlen-attention/kernels.h"

namespace varlen::varlen_attention {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(QueryGradientSm90aKernels<bfloat16>{}) &&
                                     cuda::LinkDevice(QueryGradientSm90aKernels<half>{});
}
}  // namespace varlen::varlen_attention
