#include "core/cuda/link.cuh"
#include "ops/swiglu/device.h"

namespace varlen::swiglu {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::swiglu
