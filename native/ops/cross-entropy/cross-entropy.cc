#include "ops/cross-entropy/cross-entropy.h"

namespace varlen::cross_entropy {

Status Forward::Validate() const { return options.Validate(tokens, logits.shape[0]); }
Status Backward::Validate() const { return options.Validate(tokens, logits.shape[0]); }

namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params, const Tensor& first) {
  return first.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params, params.logits); }
Status Run(const Backward& params) { return RunOnDeviceOf(params, params.logits); }

}  // namespace varlen::cross_entropy
