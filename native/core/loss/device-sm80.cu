#include "core/cuda/link.cuh"
#include "core/loss/kernels.h"

namespace varlen::loss {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(Sm80Kernels{});
}
}  // namespace varlen::loss
