#include "core/cuda/fake/link.h"
#include "ops/swiglu/device.h"

namespace varlen::swiglu {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::swiglu
