#include "ops/fused-linear-jsd/fused-linear-jsd.h"

namespace varlen::fused_linear_jsd {

Status TeacherHead::Validate() const {
  if (static_cast<bool>(head.hidden) == static_cast<bool>(head.weight)) return {};
  const bool lacks_weight = static_cast<bool>(head.hidden);
  return Invalid(
      Code::kMissingInput, lacks_weight ? "teacherWeight" : "teacherHidden",
      std::string("is required beside ") + (lacks_weight ? "teacherHidden" : "teacherWeight"),
      "nothing", "a value");
}

Status Forward::Validate() const {
  Status status = options.Validate();
  if (status.ok()) status = tokens.Validate(student.total_tokens());
  if (status.ok()) status = teacher.Validate();
  if (status.ok()) {
    status = words.Validate(options, student.vocab_size(), static_cast<bool>(teacher));
  }
  return status;
}

Status Run(const Forward& params) {
  return params.student.hidden.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const Backward& params) {
  return params.student.hidden.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::fused_linear_jsd
