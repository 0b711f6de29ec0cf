#include "core/cuda/kernels.h"

#include "core/cuda/fake/link.h"

namespace varlen::cuda {
namespace {
[[maybe_unused]] const bool linked = LinkEmulated(CoreKernels{});
}
}  // namespace varlen::cuda
