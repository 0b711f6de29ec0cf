#include <algorithm>
#include <cmath>

#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

namespace varlen::policy_loss_from_logits {
namespace {

void Write(const std::vector<double>& values, const Tensor& tensor) {
  if (tensor) std::copy(values.begin(), values.end(), tensor.data<double>());
}

// ln p of one row.
std::vector<double> LogSoftmax(const std::vector<double>& logits, int64_t row, int64_t vocab_size,
                               double temperature) {
  std::vector<double> z(static_cast<size_t>(vocab_size));
  for (int64_t v = 0; v < vocab_size; ++v) z[v] = logits[row * vocab_size + v] / temperature;
  const double max = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double value : z) sum += std::exp(value - max);
  for (double& value : z) value -= max + std::log(sum);
  return z;
}

double Entropy(const std::vector<double>& log_p) {
  double entropy = 0;
  for (double value : log_p) entropy -= std::exp(value) > 0 ? std::exp(value) * value : 0;
  return entropy;
}

}  // namespace

// Logits are contiguous here.
Status RunReference(const Forward& p) {
  const int64_t num_tokens = p.logits.shape[0], vocab_size = p.logits.shape[1];
  const std::vector<double> logits = loss::ReadDoubles(p.logits);
  loss::ReferenceInputs in = p.batch.ToReference(num_tokens);
  std::vector<double> lse(num_tokens), squares(num_tokens);
  in.logprobs.assign(num_tokens, 0);
  in.entropies.assign(num_tokens, 0);
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (!in.loss_mask.empty() && in.loss_mask[t] == 0) continue;
    const std::vector<double> log_p = LogSoftmax(logits, t, vocab_size, p.temperature);
    in.logprobs[t] = log_p[p.target_ids.data()[t]];
    lse[t] = logits[t * vocab_size] / p.temperature - log_p[0];
    in.entropies[t] = Entropy(log_p);
    for (double value : log_p) squares[t] += std::exp(2 * value);
  }
  if (!p.uses_entropies()) in.entropies.clear();
  const loss::ReferenceOutputs out = loss::EvaluateReference(p.config, in);
  Write({out.loss}, p.loss);
  Write(out.d_logprobs, p.d_logprobs);
  Write(out.sums, p.sums);
  Write(in.logprobs, p.logprobs);
  Write(lse, p.lse);
  Write(out.per_token_loss, p.per_token_loss);
  Write(out.sequence_losses, p.sequence_losses);
  Write(in.entropies, p.entropies);
  Write(out.d_entropies, p.d_entropies);
  Write(squares, p.sum_squares);
  return {};
}

Status RunReference(const Backward& p) {
  const int64_t num_tokens = p.logits.shape[0], vocab_size = p.logits.shape[1];
  const std::vector<double> logits = loss::ReadDoubles(p.logits);
  const std::vector<double> d_loss = loss::ReadDoubles(p.d_loss);
  const std::vector<double> d_logprobs = loss::ReadDoubles(p.d_logprobs);
  const std::vector<double> d_entropies = loss::ReadDoubles(p.d_entropies);
  std::vector<double> d_logits(static_cast<size_t>(num_tokens * vocab_size), 0);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const double c = d_logprobs[t], e = d_entropies.empty() ? 0 : d_entropies[t];
    if (c == 0 && e == 0) continue;
    const std::vector<double> log_p = LogSoftmax(logits, t, vocab_size, p.temperature);
    const double entropy = Entropy(log_p);
    for (int64_t v = 0; v < vocab_size; ++v) {
      const double probability = std::exp(log_p[v]);
      double gradient = c * ((v == p.target_ids.data()[t]) - probability);
      if (probability > 0) gradient -= e * probability * (log_p[v] + entropy);
      d_logits[t * vocab_size + v] = d_loss[0] / p.temperature * gradient;
    }
  }
  Write(d_logits, p.d_logits);
  return {};
}

}  // namespace varlen::policy_loss_from_logits
