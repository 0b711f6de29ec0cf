#include "core/cuda/link.cuh"
#include "ops/cross-entropy-from-hidden/kernels.h"

namespace varlen::cross_entropy_from_hidden {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Sm80Kernels{});
}
}  // namespace varlen::cross_entropy_from_hidden
