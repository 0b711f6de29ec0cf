#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden {

namespace {
Status ValidateAll(const LinearHead& head, const CrossEntropyTokens& tokens,
                   const CrossEntropyOptions& options, const VocabularyShard& shard) {
  Status status = options.Validate(tokens, head.total_tokens());
  return status.ok() ? shard.Validate(head.vocab_size(), head.hidden.device) : status;
}
}  // namespace

Status Statistics::Validate() const {
  CrossEntropyOptions options;
  options.temperature = temperature;
  options.softcap = softcap;
  options.logit_scale = logit_scale;
  return ValidateAll(head, tokens, options, shard);
}
Status Forward::Validate() const { return ValidateAll(head, tokens, options, shard); }
Status Backward::Validate() const { return ValidateAll(head, tokens, options, shard); }

namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params, const Tensor& first) {
  return first.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
}  // namespace

Status Run(const Statistics& params) { return RunCpu(params); }
Status Run(const Forward& params) { return RunOnDeviceOf(params, params.head.hidden); }
Status Run(const Backward& params) { return RunOnDeviceOf(params, params.head.hidden); }

}  // namespace varlen::cross_entropy_from_hidden
