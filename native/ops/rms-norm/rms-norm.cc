#include "ops/rms-norm/rms-norm.h"

#include <cmath>
#include <string>

namespace varlen::rms_norm {
namespace {

Status CheckOffset(float weight_offset) {
  if (weight_offset == 0 || weight_offset == 1) return {};
  return Invalid(Code::kRange, "weightOffset", "is neither 0 nor 1", std::to_string(weight_offset),
                 "0 or 1");
}

template <class Params>
Status RunOnDeviceOf(const Params& params) {
  return params.weight.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace

Status Forward::Validate() const {
  if (!(eps >= 0) || std::isinf(eps)) {
    return Invalid(Code::kRange, "eps", "must be finite and not negative", std::to_string(eps),
                   ">= 0");
  }
  return CheckOffset(weight_offset);
}
Status Backward::Validate() const { return CheckOffset(weight_offset); }

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::rms_norm
