#include "core/cuda/link.cuh"
#include "ops/group-advantage/kernels.h"

namespace varlen::group_advantage {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Sm80Kernels{});
}
}  // namespace varlen::group_advantage
