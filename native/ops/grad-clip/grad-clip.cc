#include "ops/grad-clip/grad-clip.h"

#include <string>

namespace varlen::grad_clip {

Status Forward::Validate() const {
  if (max_norm >= 0) return {};
  return Invalid(Code::kRange, "maxNorm", "must not be negative", std::to_string(max_norm),
                 ">= 0, Infinity to measure only");
}

Status Run(const Forward& params) {
  return params.norm.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::grad_clip
