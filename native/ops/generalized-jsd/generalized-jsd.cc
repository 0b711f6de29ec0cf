#include "ops/generalized-jsd/generalized-jsd.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/loss/loss.h"

namespace varlen::generalized_jsd {
namespace {

Status CheckNumber(const char* name, double value, bool ok, const char* expected) {
  if (ok && std::isfinite(value)) return {};
  return Invalid(Code::kRange, name, "is out of range", std::to_string(value), expected);
}

}  // namespace

Status Options::Validate() const {
  for (const Status& status : {
           CheckNumber("beta", beta, beta >= 0 && beta <= 1, "between 0 and 1"),
           CheckNumber("temperature", temperature, temperature > 0, "a finite number above 0"),
           CheckNumber("softcap", softcap, softcap >= 0, "a finite number >= 0 (0 turns it off)"),
           CheckNumber("logitScale", logit_scale, true, "a finite number"),
           CheckNumber("teacherFloor", teacher_floor, teacher_floor <= 0, "a finite number < 0"),
       }) {
    if (!status.ok()) return status;
  }
  return {};
}

Status Forward::Validate() const {
  if (Status status = options.Validate(); !status.ok()) return status;
  if (Status status = CheckNumber("isClip", is_clip, is_clip >= 0, "a finite number above 0");
      !status.ok()) {
    return status;
  }
  const auto both = [](const char* missing, const char* beside) {
    return Invalid(Code::kMissingInput, missing, std::string("is required beside ") + beside,
                   "nothing", "a value");
  };
  if (logprobs && !old_logprobs) return both("oldLogprobs", "logprobs");
  if (old_logprobs && !logprobs) return both("logprobs", "oldLogprobs");
  if (seq_scale && !cu_seqlens) return both("cuSeqlens", "plan");
  if (cu_seqlens && !seq_scale) return both("plan", "cuSeqlens");
  if (!seq_scale) return {};
  if (cu_seqlens.size() != seq_scale.size() + 1) {
    return Invalid(Code::kPlanMismatch, "plan", "was made for another number of sequences",
                   std::to_string(seq_scale.size()), std::to_string(cu_seqlens.size() - 1));
  }
  if (!cu_seqlens.on_host()) return {};
  return loss::CheckCuSeqlens(cu_seqlens.data(), seq_scale.size(), student.shape[0]);
}

Status WeighTokens(const Forward& params, float* coefficients, double* tokens) {
  const int64_t total = params.student.shape[0];
  const uint8_t* mask = params.loss_mask ? params.loss_mask.data<uint8_t>() : nullptr;
  const float* weights = params.weights ? params.weights.data<float>() : nullptr;
  const auto counts = [&](int64_t t) { return mask == nullptr || mask[t] != 0; };
  int64_t active = 0;
  for (int64_t t = 0; t < total; ++t) active += counts(t);
  *tokens = static_cast<double>(active);
  const auto weigh = [&](int64_t t, double scale) -> Status {
    coefficients[t] = 0;
    if (!counts(t)) return {};
    const double weight = weights == nullptr ? 1 : weights[t];
    if (!(weight >= 0) || std::isinf(weight)) {
      return Invalid(Code::kWeight, "weights", "must be finite and not negative",
                     "weights[" + std::to_string(t) + "] = " + std::to_string(weight), ">= 0");
    }
    double rho = 1;
    if (params.is_clip > 0 && params.logprobs) {
      const double log_ratio =
          double{params.logprobs.data<float>()[t]} - params.old_logprobs.data<float>()[t];
      rho = std::min<double>(std::exp(std::clamp(log_ratio, -20.0, 20.0)), params.is_clip);
    }
    coefficients[t] = static_cast<float>(weight * rho * scale);
    return {};
  };
  if (!params.seq_scale) {
    for (int64_t t = 0; t < total; ++t) {
      Status status = weigh(t, 1.0 / static_cast<double>(active));
      if (!status.ok()) return status;
    }
    return {};
  }
  const int32_t* cu = params.cu_seqlens.data();
  Status status = loss::CheckCuSeqlens(cu, params.seq_scale.size(), total);
  for (int64_t i = 0; i < params.seq_scale.size() && status.ok(); ++i) {
    for (int64_t t = cu[i]; t < cu[i + 1] && status.ok(); ++t) {
      status = weigh(t, params.seq_scale.data()[i]);
    }
  }
  return status;
}

Status Run(const Forward& params) {
  return params.student.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const Backward& params) {
  return params.student.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::generalized_jsd
