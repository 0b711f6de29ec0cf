#include "core/cuda/fake/link.h"
#include "ops/cross-entropy/kernels.h"

namespace varlen::cross_entropy {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::cross_entropy
