#include "core/cuda/link.cuh"
#include "ops/add/device.h"

namespace varlen::add {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::add
