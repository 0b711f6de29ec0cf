#include "core/cross-entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace varlen {
namespace {

std::string At(const char* name, int64_t index, double value) {
  std::string number = std::to_string(value);
  if (value == std::floor(value) && std::abs(value) < 1e15) {
    number = std::to_string(static_cast<int64_t>(value));
  }
  return std::string(name) + "[" + std::to_string(index) + "] = " + number;
}

Status CheckNumber(const char* name, double value, bool ok, const char* expected) {
  if (ok && std::isfinite(value)) return {};
  return Invalid(Code::kRange, name, "is out of range", std::to_string(value), expected);
}

bool Counts(const CrossEntropyTokens& tokens, int64_t row) {
  if (tokens.loss_mask && tokens.loss_mask.data<uint8_t>()[row] == 0) return false;
  return !tokens.weights || tokens.weights.data<float>()[row] != 0;
}

}  // namespace

Status CrossEntropyOptions::Validate(const CrossEntropyTokens& tokens, int64_t total_tokens) const {
  if (tokens.target_ids.size() != total_tokens) {
    return Invalid(Code::kShape, "targetIds", "must have one entry per token",
                   std::to_string(tokens.target_ids.size()), std::to_string(total_tokens));
  }
  if (total_tokens > std::numeric_limits<int32_t>::max()) {
    return Invalid(Code::kOverflow, "targetIds", "has more tokens than int32 offsets can hold",
                   std::to_string(total_tokens), "below 2^31");
  }
  for (const Status& status : {
           CheckNumber("temperature", temperature, temperature > 0, "a finite number above 0"),
           CheckNumber("softcap", softcap, softcap >= 0, "a finite number >= 0 (0 turns it off)"),
           CheckNumber("logitScale", logit_scale, true, "a finite number"),
           CheckNumber("labelSmoothing", label_smoothing,
                       label_smoothing >= 0 && label_smoothing <= 1, "between 0 and 1"),
           CheckNumber("zLoss", z_loss, z_loss >= 0, "a finite number >= 0"),
           CheckNumber("scale", scale, true, "a finite number"),
       }) {
    if (!status.ok()) return status;
  }
  return {};
}

Status CountTokens(const CrossEntropyTokens& tokens, int64_t total_tokens, int64_t vocab_size,
                   CountedTokens* counted) {
  const int32_t* targets = tokens.target_ids.data();
  for (int64_t row = 0; row < total_tokens; ++row) {
    // The mask is asked first: where it is 0, neither weight nor target is looked at.
    if (!Counts(tokens, row)) continue;
    const float weight = tokens.weights ? tokens.weights.data<float>()[row] : 1.0f;
    if (!(weight >= 0) || std::isinf(weight)) {
      return Invalid(Code::kWeight, "weights", "must be finite and not negative",
                     At("weights", row, weight), ">= 0");
    }
    if (targets[row] < 0 || targets[row] >= vocab_size) {
      Status status = Invalid(Code::kIndex, "targetIds", "is outside the vocabulary",
                              At("targetIds", row, targets[row]),
                              "0.." + std::to_string(vocab_size - 1) + ", or lossMask 0");
      status.details = {{"row", static_cast<double>(row)}};
      return status;
    }
    counted->rows.push_back(static_cast<int32_t>(row));
    counted->targets.push_back(targets[row]);
    counted->weights.push_back(weight);
    counted->weight_sum += weight;
  }
  return {};
}

namespace {
// What the sum of weighted losses is multiplied by.
double FactorOf(const CrossEntropyOptions& options, const CountedTokens& counted) {
  if (counted.size() == 0) return 0;
  return options.normalize ? options.scale / counted.weight_sum : options.scale;
}
}  // namespace

void WriteCrossEntropy(const CrossEntropyOptions& options, const CountedTokens& counted,
                       const CrossEntropyRows& rows, int64_t total_tokens,
                       const CrossEntropyOutputs& out) {
  for (const Tensor* tensor : {&out.per_token, &out.logprobs, &out.entropies}) {
    std::fill_n(tensor->data<float>(), total_tokens, 0.0f);
  }
  std::fill_n(out.lse.data<double>(), total_tokens, 0.0);
  double sum = 0;
  const double smoothing = options.label_smoothing;
  for (int64_t i = 0; i < counted.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const double lse = rows.lse[at];
    const double logprob = rows.target_logit[at] - lse;
    // Not 0 * infinity where a word is impossible and nothing is smoothed.
    const double spread = smoothing == 0 ? 0 : smoothing * (lse - rows.mean_logit[at]);
    const double hit = smoothing == 1 ? 0 : (1 - smoothing) * -logprob;
    const double loss = hit + spread + options.z_loss * lse * lse;
    const int64_t row = counted.rows[at];
    out.per_token.data<float>()[row] = static_cast<float>(loss);
    out.logprobs.data<float>()[row] = static_cast<float>(logprob);
    out.entropies.data<float>()[row] = rows.entropy[at];
    out.lse.data<double>()[row] = lse;
    sum += counted.weights[at] * loss;
  }
  *out.loss.data<float>() = static_cast<float>(FactorOf(options, counted) * sum);
}

CrossEntropyGradients::CrossEntropyGradients(const CrossEntropyOptions& options,
                                             const CountedTokens& counted,
                                             const CrossEntropyUpstream& upstream,
                                             int64_t vocab_size)
    : counted_(counted) {
  const auto at = [](const Tensor& tensor, int64_t row) -> double {
    return tensor ? tensor.data<float>()[row] : 0.0f;
  };
  const double d_loss = upstream.d_loss ? *upstream.d_loss.data<float>() : 0.0f;
  const double factor = d_loss * FactorOf(options, counted);
  for (size_t i = 0; i < counted.rows.size(); ++i) {
    const int64_t row = counted.rows[i];
    const double lse = upstream.lse.data<double>()[row];
    const double d_ell = factor * counted.weights[i] + at(upstream.d_per_token, row);
    const double d_logprob = at(upstream.d_logprobs, row);
    const double d_entropy = at(upstream.d_entropies, row);
    const double entropy = d_entropy == 0 ? 0 : double{upstream.entropies.data<float>()[row]};
    // dH/dz = -p (ln p + H)
    const double scale = d_ell * (1 + 2 * options.z_loss * lse) - d_logprob - d_entropy * entropy;
    const double target = d_logprob - d_ell * (1 - double{options.label_smoothing});
    const double offset = -d_ell * options.label_smoothing / static_cast<double>(vocab_size);
    lse_.push_back(lse);
    dense_.push_back(
        {static_cast<float>(scale), static_cast<float>(-d_entropy), static_cast<float>(offset)});
    target_.push_back(static_cast<float>(target));
  }
}

LogitGradients CrossEntropyGradients::gradients() const {
  return {lse_.data(), dense_.data(), 1, counted_.targets.data(), target_.data()};
}

}  // namespace varlen
