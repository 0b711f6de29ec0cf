#include "core/cuda/fake/link.h"
#include "ops/sparse-prefill/merge-backward-device.h"

namespace varlen::sparse_prefill {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(MergeBackwardKernels{});
}
}  // namespace varlen::sparse_prefill
