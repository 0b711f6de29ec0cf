#include "core/cuda/fake/link.h"
#include "ops/adamw/device.h"

namespace varlen::adamw {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::adamw
