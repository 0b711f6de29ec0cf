#include "ops/adamw/adamw.h"

#include <cmath>
#include <string>
#include <utility>

namespace varlen::adamw {
namespace {

Status CheckList(const char* name, const std::vector<Tensor>& list,
                 const std::vector<Tensor>& gradients) {
  if (list.size() != gradients.size()) {
    return Invalid(Code::kShape, name, "must have one tensor per gradient",
                   std::to_string(list.size()), std::to_string(gradients.size()));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].size() == gradients[i].size()) continue;
    return Invalid(Code::kShape, name, "must have the gradients' shapes",
                   std::to_string(list[i].size()) + " elements at " + std::to_string(i),
                   std::to_string(gradients[i].size()));
  }
  return {};
}

}  // namespace

Status Forward::Validate() const {
  if (Status status = CheckList("parameters", parameters, gradients); !status.ok()) return status;
  if (Status status = CheckList("expAvg", exp_avg, gradients); !status.ok()) return status;
  if (Status status = CheckList("expAvgSq", exp_avg_sq, gradients); !status.ok()) return status;
  if (!masters.empty()) {
    if (Status status = CheckList("masters", masters, gradients); !status.ok()) return status;
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const bool wide = parameters[i].dtype == DType::kF32;
    if (wide != masters.empty()) {
      return Invalid(Code::kDType, "masters",
                     wide ? "are for 16-bit parameters alone" : "are needed by a 16-bit parameter",
                     NameOf(parameters[i].dtype), "all parameters float32, or all 16-bit");
    }
  }
  if (step < 1) {
    return Invalid(Code::kRange, "step", "counts from 1", std::to_string(step), ">= 1");
  }
  for (const auto& [name, value] :
       {std::pair{"lr", lr}, {"eps", eps}, {"weightDecay", weight_decay}}) {
    if (!(value >= 0) || std::isinf(value)) {
      return Invalid(Code::kRange, name, "must be finite and not negative", std::to_string(value),
                     ">= 0");
    }
  }
  for (const auto& [name, value] : {std::pair{"beta1", beta1}, {"beta2", beta2}}) {
    if (!(value >= 0 && value < 1)) {
      return Invalid(Code::kRange, name, "is out of range", std::to_string(value), "0 <= beta < 1");
    }
  }
  return {};
}

Status Run(const Forward& params) {
  if (params.gradients.empty()) return {};
  return params.gradients[0].device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::adamw
