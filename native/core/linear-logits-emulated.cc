#include "core/cuda/fake/link.h"
#include "core/linear-logits-kernels.h"

namespace varlen {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(LinearLogitsKernels{});
}
}  // namespace varlen
