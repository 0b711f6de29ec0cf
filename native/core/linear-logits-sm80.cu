#include "core/cuda/link.cuh"
#include "core/linear-logits-kernels.h"

namespace varlen {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(LinearLogitsKernels{});
}
}  // namespace varlen
