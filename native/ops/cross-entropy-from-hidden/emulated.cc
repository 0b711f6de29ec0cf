#include "core/cuda/fake/link.h"
#include "ops/cross-entropy-from-hidden/kernels.h"

namespace varlen::cross_entropy_from_hidden {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::cross_entropy_from_hidden
