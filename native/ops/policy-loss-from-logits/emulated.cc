#include "core/cuda/fake/link.h"
#include "ops/policy-loss-from-logits/kernels.h"

namespace varlen::policy_loss_from_logits {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::policy_loss_from_logits
