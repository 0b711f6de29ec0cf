#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden {

Status Forward::Validate() const { return options.Validate(tokens, head.hidden.shape[0]); }
Status Backward::Validate() const { return options.Validate(tokens, head.hidden.shape[0]); }

namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params, const Tensor& first) {
  return first.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params, params.head.hidden); }
Status Run(const Backward& params) { return RunOnDeviceOf(params, params.head.hidden); }

}  // namespace varlen::cross_entropy_from_hidden
