#include "core/cuda/link.cuh"
#include "ops/sparse-prefill/merge-backward-device.h"

namespace varlen::sparse_prefill {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkDevice(MergeBackwardKernels{});
}
}  // namespace varlen::sparse_prefill
