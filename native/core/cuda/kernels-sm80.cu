#include "core/cuda/kernels.h"
#include "core/cuda/link.cuh"

namespace varlen::cuda {
namespace {
[[maybe_unused]] const bool linked = LinkDevice(CoreKernels{});
}
}  // namespace varlen::cuda
