#include "core/cuda/fake/link.h"
#include "ops/policy-loss-from-hidden/kernels.h"

namespace varlen::policy_loss_from_hidden {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::policy_loss_from_hidden
