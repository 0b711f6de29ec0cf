#include "ops/sampling/sampling.h"

#include <cmath>
#include <string>

namespace varlen::sampling {

Status BadRow(int64_t row) {
  return Invalid(Code::kRange, "logits", "has a row without a distribution",
                 "NaN, +Infinity or nothing but -Infinity in row " + std::to_string(row),
                 "numbers, and at least one that is finite");
}

Status Forward::Validate() const {
  if (random.size() != logits.shape[0]) {
    return Invalid(Code::kShape, "random", "must have one entry per row of logits",
                   std::to_string(random.size()), std::to_string(logits.shape[0]));
  }
  if (logits.shape[0] > 0 && logits.shape[1] == 0) {
    return Invalid(Code::kShape, "logits", "has no words to draw from", "vocabSize 0",
                   "vocabSize >= 1");
  }
  if (!(temperature >= 0) || std::isinf(temperature)) {
    return Invalid(Code::kRange, "temperature", "must be finite and not negative",
                   std::to_string(temperature), ">= 0 (0 takes the likeliest word)");
  }
  if (top_k < 0) {
    return Invalid(Code::kRange, "topK", "must not be negative", std::to_string(top_k),
                   ">= 1, or 0 for all words");
  }
  if (!(top_p > 0 && top_p <= 1)) {
    return Invalid(Code::kRange, "topP", "is out of range", std::to_string(top_p), "0 < topP <= 1");
  }
  if (!(min_p >= 0 && min_p <= 1)) {
    return Invalid(Code::kRange, "minP", "is out of range", std::to_string(min_p),
                   "0 <= minP <= 1");
  }
  return {};
}

Status Run(const Forward& params) {
  return params.logits.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::sampling
