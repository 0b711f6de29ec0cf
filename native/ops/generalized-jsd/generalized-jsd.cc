#include "ops/generalized-jsd/generalized-jsd.h"

namespace varlen::generalized_jsd {

Status Forward::Validate() const {
  Status status = options.Validate();
  if (status.ok()) status = tokens.Validate(student.shape[0]);
  if (status.ok()) status = words.Validate(options, student.shape[1], static_cast<bool>(teacher));
  return status;
}

Status Run(const Forward& params) {
  return params.student.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const Backward& params) {
  return params.student.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::generalized_jsd
