#include "core/cuda/link.cuh"
#include "ops/sparse-prefill/kernels.h"

namespace varlen::sparse_prefill {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(ForwardSm80Kernels<bfloat16>{});
}
}  // namespace varlen::sparse_prefill
