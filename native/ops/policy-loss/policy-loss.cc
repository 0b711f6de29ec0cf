#include "ops/policy-loss/policy-loss.h"

namespace varlen::policy_loss {

Status Forward::Validate() const {
  if (config.entropy_coef != 0) {
    return Invalid(Code::kIncompatible, "entropy",
                   "has no gradient through log-probabilities of sampled tokens",
                   "a coefficient of " + std::to_string(config.entropy_coef),
                   "0, or the loss from logits or hidden states");
  }
  return batch.Validate(config, logprobs.shape[0]);
}

Status Run(const Forward& params) {
  if (params.logprobs.device.kind == DeviceKind::kCuda) return RunCuda(params);
  const Status status = params.batch.ValidateInStream(params.logprobs.shape[0]);
  return status.ok() ? RunCpu(params) : status;
}

Status Run(const Backward& params) {
  return params.d_logprobs.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::policy_loss
