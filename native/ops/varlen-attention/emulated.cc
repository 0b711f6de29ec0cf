#include "core/cuda/fake/link.h"
#include "ops/varlen-attention/kernels.h"

namespace varlen::varlen_attention {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::varlen_attention
