#include "core/cuda/link.cuh"
#include "ops/write-rows/device.h"

namespace varlen::write_rows {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Kernels{});
}
}  // namespace varlen::write_rows
