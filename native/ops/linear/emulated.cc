#include "core/cuda/fake/link.h"
#include "ops/linear/device.h"

namespace varlen::linear {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::linear
