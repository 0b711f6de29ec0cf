#include "core/cuda/link.cuh"
#include "ops/adamw/device.h"

namespace varlen::adamw {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::adamw
