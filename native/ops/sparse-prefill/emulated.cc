#include "core/cuda/fake/link.h"
#include "ops/sparse-prefill/kernels.h"

namespace varlen::sparse_prefill {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(JoinKernels{}) &&
                                     cuda::LinkEmulated(ForwardSm80Kernels<bfloat16>{}) &&
                                     cuda::LinkEmulated(ForwardSm80Kernels<half>{});
}
}  // namespace varlen::sparse_prefill
