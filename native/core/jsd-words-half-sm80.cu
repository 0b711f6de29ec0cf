#include "core/cuda/link.cuh"
#include "core/jsd-kernels.h"

namespace varlen::jsd {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(WordKernels<half>{});
}
}  // namespace varlen::jsd
