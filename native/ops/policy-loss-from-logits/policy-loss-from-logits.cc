#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

#include <cmath>
#include <string>

namespace varlen::policy_loss_from_logits {
namespace {

Status CheckTemperature(double temperature) {
  if (temperature > 0 && std::isfinite(temperature)) return {};
  return Invalid(Code::kRange, "temperature", "must be positive and finite",
                 std::to_string(temperature), "a number above 0");
}

Status CheckTargets(const HostOrTensor<int32_t>& targets, int64_t num_tokens) {
  if (targets.size() == num_tokens) return {};
  return Invalid(Code::kShape, "targetIds", "must have one entry per row",
                 std::to_string(targets.size()), std::to_string(num_tokens));
}

bool Active(const Tensor& mask, int64_t t) { return !mask || mask.data<uint8_t>()[t] != 0; }

// Target ids of active rows; those of masked rows are anything.
Status CheckIds(const Forward& p) {
  const int32_t* ids = p.target_ids.data();
  const int64_t vocab_size = p.logits.shape[1];
  for (int64_t t = 0; t < p.logits.shape[0]; ++t) {
    if ((ids[t] >= 0 && ids[t] < vocab_size) || !Active(p.batch.loss_mask, t)) continue;
    Status status = Invalid(Code::kIndex, "targetIds", "is outside the vocabulary",
                            "targetIds[" + std::to_string(t) + "] = " + std::to_string(ids[t]),
                            "0.." + std::to_string(vocab_size - 1));
    status.details = {{"row", static_cast<double>(t)}};
    return status;
  }
  return {};
}

}  // namespace

Status Forward::Validate() const {
  const int64_t num_tokens = logits.shape[0];
  if (Status status = CheckTemperature(temperature); !status.ok()) return status;
  if (Status status = CheckTargets(target_ids, num_tokens); !status.ok()) return status;
  if (Status status = batch.Validate(config, num_tokens); !status.ok()) return status;
  // Without a mask all rows are active, and ids on the host are known.
  return target_ids.on_host() && !batch.loss_mask ? CheckIds(*this) : Status{};
}

Status Backward::Validate() const {
  if (overwrite.empty() != static_cast<bool>(logits) || overwrite.size() > 1) {
    return Invalid(Code::kMissingInput, "logits", "must come once, to be read or to be overwritten",
                   "none or several", "one tensor");
  }
  if (source().rank != 2 || source().shape[0] != d_logprobs.shape[0]) {
    return Invalid(Code::kShape, "logits", "disagrees on totalTokens",
                   source().rank == 2 ? std::to_string(source().shape[0]) + " rows"
                                      : "rank " + std::to_string(source().rank),
                   std::to_string(d_logprobs.shape[0]) + " rows");
  }
  if (Status status = CheckTemperature(temperature); !status.ok()) return status;
  return CheckTargets(target_ids, d_logprobs.shape[0]);
}

Status Run(const Forward& params) {
  if (params.logits.device.kind == DeviceKind::kCuda) return RunCuda(params);
  if (Status status = params.batch.ValidateInStream(params.logits.shape[0]); !status.ok()) {
    return status;
  }
  const Status status = CheckIds(params);
  return status.ok() ? RunCpu(params) : status;
}

Status Run(const Backward& params) {
  return params.d_logprobs.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::policy_loss_from_logits
