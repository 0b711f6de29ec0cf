#include "core/cuda/link.cuh"
#include "ops/cross-entropy/kernels.h"

namespace varlen::cross_entropy {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Sm80Kernels{});
}
}  // namespace varlen::cross_entropy
