#include "core/cuda/fake/link.h"
#include "ops/fused-linear-jsd/kernels.h"

namespace varlen::fused_linear_jsd {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::fused_linear_jsd
