#include "core/cuda/link.cuh"
#include "ops/embedding/device.h"

namespace varlen::embedding {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::embedding
