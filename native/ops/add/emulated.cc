#include "core/cuda/fake/link.h"
#include "ops/add/device.h"

namespace varlen::add {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::add
