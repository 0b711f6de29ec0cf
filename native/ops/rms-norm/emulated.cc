#include "core/cuda/fake/link.h"
#include "ops/rms-norm/device.h"

namespace varlen::rms_norm {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::rms_norm
