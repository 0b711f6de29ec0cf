#include "core/cuda/link.cuh"
#include "ops/rope/device.h"

namespace varlen::rope {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::rope
