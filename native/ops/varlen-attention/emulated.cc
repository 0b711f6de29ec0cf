#include "core/cuda/fake/link.h"
#include "ops/varlen-attention/kernels.h"

namespace varlen::varlen_attention {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(ForwardSm80Kernels{}) &&
                                     cuda::LinkEmulated(ForwardF32Kernels{}) &&
                                     cuda::LinkEmulated(ForwardSm90aKernels{}) &&
                                     cuda::LinkEmulated(QueryGradientSm80Kernels<float>{}) &&
                                     cuda::LinkEmulated(KeyGradientSm80Kernels<float>{}) &&
                                     cuda::LinkEmulated(QueryGradientSm80Kernels<bfloat16>{}) &&
                                     cuda::LinkEmulated(QueryGradientSm80Kernels<half>{}) &&
                                     cuda::LinkEmulated(KeyGradientSm80Kernels<bfloat16>{}) &&
                                     cuda::LinkEmulated(KeyGradientSm80Kernels<half>{}) &&
                                     cuda::LinkEmulated(QueryGradientSm90aKernels<bfloat16>{}) &&
                                     cuda::LinkEmulated(QueryGradientSm90aKernels<half>{}) &&
                                     cuda::LinkEmulated(KeyGradientSm90aKernels<bfloat16>{}) &&
                                     cuda::LinkEmulated(KeyGradientSm90aKernels<half>{});
}
}  // namespace varlen::varlen_attention
