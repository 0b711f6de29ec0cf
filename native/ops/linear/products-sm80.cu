#include "core/cuda/link.cuh"
#include "ops/linear/device.h"

namespace varlen::linear {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::linear
