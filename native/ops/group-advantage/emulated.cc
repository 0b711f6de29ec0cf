#include "core/cuda/fake/link.h"
#include "ops/group-advantage/kernels.h"

namespace varlen::group_advantage {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::group_advantage
