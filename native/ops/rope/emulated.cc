#include "core/cuda/fake/link.h"
#include "ops/rope/device.h"

namespace varlen::rope {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::rope
