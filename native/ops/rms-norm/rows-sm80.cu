#include "core/cuda/link.cuh"
#include "ops/rms-norm/device.h"

namespace varlen::rms_norm {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::rms_norm
