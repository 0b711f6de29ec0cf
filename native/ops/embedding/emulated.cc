#include "core/cuda/fake/link.h"
#include "ops/embedding/device.h"

namespace varlen::embedding {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Kernels{});
}
}  // namespace varlen::embedding
