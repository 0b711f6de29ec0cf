#include "core/cuda/fake/link.h"
#include "ops/write-rows/device.h"

namespace varlen::write_rows {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::write_rows
