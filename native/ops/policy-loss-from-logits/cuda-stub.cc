#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::policy_loss_from_logits {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "logits", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::policy_loss_from_logits
