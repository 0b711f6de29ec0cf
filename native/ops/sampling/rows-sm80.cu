#include "core/cuda/link.cuh"
#include "ops/sampling/device.h"

namespace varlen::sampling {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::sampling
