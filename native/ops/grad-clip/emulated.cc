#include "core/cuda/fake/link.h"
#include "ops/grad-clip/device.h"

namespace varlen::grad_clip {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::grad_clip
