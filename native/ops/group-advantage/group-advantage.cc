#include "ops/group-advantage/group-advantage.h"

#include <cmath>
#include <string>

namespace varlen::group_advantage {

Status Forward::Validate() const {
  const int64_t num_seqs = rewards.shape[0];
  for (const auto& [name, array] : {std::pair{"groupIds", &group_ids}, {"lengths", &lengths}}) {
    if (!*array || array->size() == num_seqs) continue;
    return Invalid(Code::kShape, name, "must have one entry per reward",
                   std::to_string(array->size()), std::to_string(num_seqs));
  }
  if (static_cast<Estimator>(estimator) == Estimator::kOpo && !lengths) {
    return Invalid(Code::kMissingInput, "lengths", "is required by estimator 'opo'", "nothing",
                   "active tokens per answer");
  }
  if (!(eps >= 0) || std::isinf(eps)) {
    return Invalid(Code::kRange, "eps", "must be finite and not negative", std::to_string(eps),
                   ">= 0");
  }
  return {};
}

Status Run(const Forward& params) {
  return params.rewards.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::group_advantage
