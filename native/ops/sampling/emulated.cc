#include "core/cuda/fake/link.h"
#include "ops/sampling/device.h"

namespace varlen::sampling {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::sampling
