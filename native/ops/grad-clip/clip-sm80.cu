#include "core/cuda/link.cuh"
#include "ops/grad-clip/device.h"

namespace varlen::grad_clip {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::grad_clip
