#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/cross-entropy.h"
#include "core/op_reference.h"

// The formulas of core/cross-entropy.h as plain loops in double, for the references of both ops.
// The backward pass computes the statistics again instead of reading those that the forward pass
// saved.
namespace varlen::cross_entropy_reference {

inline double WeightOf(const CrossEntropyTokens& tokens, int64_t row) {
  if (ReadOr(tokens.loss_mask, row, 1) == 0) return 0;
  return ReadOr(tokens.weights, row, 1);
}

// One row: logits before and after the activation, and what follows from them.
struct Row {
  std::vector<double> z, slope;  // slope: dz / du
  double lse = 0, entropy = 0, mean = 0;

  Row(const std::vector<double>& raw, const CrossEntropyOptions& options) {
    double max = -std::numeric_limits<double>::infinity();
    for (double u : raw) {
      const double x = options.logit_scale * u;
      const double tanh = options.softcap > 0 ? std::tanh(x / options.softcap) : 0;
      z.push_back((options.softcap > 0 ? options.softcap * tanh : x) / options.temperature);
      slope.push_back(options.logit_scale * (1 - tanh * tanh) / options.temperature);
      max = std::max(max, z.back());
      mean += z.back() / static_cast<double>(raw.size());
    }
    double sum = 0;
    for (double x : z) sum += std::exp(x - max);
    lse = max + std::log(sum);
    for (double x : z) {
      const double p = std::exp(x - lse);
      if (p > 0) entropy -= p * (x - lse);
    }
  }

  double Loss(int32_t target, const CrossEntropyOptions& o) const {
    const double eps = o.label_smoothing;
    return (1 - eps) * (lse - z[target]) + (eps == 0 ? 0 : eps * (lse - mean)) +
           o.z_loss * lse * lse;
  }
  // dz from gradients of the token's loss, log-probability and entropy.
  std::vector<double> Gradient(int32_t target, const CrossEntropyOptions& o, double d_loss,
                               double d_logprob, double d_entropy) const {
    std::vector<double> du;
    const double eps = o.label_smoothing, words = static_cast<double>(z.size());
    for (size_t v = 0; v < z.size(); ++v) {
      const double p = std::exp(z[v] - lse), hit = static_cast<int64_t>(v) == target ? 1 : 0;
      double dz = d_loss * (p - (1 - eps) * hit - eps / words + 2 * o.z_loss * lse * p);
      dz += d_logprob * (hit - p);
      if (p > 0) dz -= d_entropy * p * (z[v] - lse + entropy);
      du.push_back(dz * slope[v]);
    }
    return du;
  }
};

inline double WeightSum(const CrossEntropyTokens& tokens, int64_t total) {
  double sum = 0;
  for (int64_t t = 0; t < total; ++t) sum += WeightOf(tokens, t);
  return sum;
}
inline double FactorOf(const CrossEntropyOptions& options, double weight_sum) {
  if (!options.normalize) return options.scale;
  return weight_sum > 0 ? options.scale / weight_sum : 0;
}

// raw(t): the logits of token t before any activation.
template <class RawLogits>
void Forward(const CrossEntropyTokens& tokens, const CrossEntropyOptions& options,
             int64_t total_tokens, const RawLogits& raw, const CrossEntropyOutputs& out) {
  for (const Tensor* tensor : {&out.per_token, &out.logprobs, &out.entropies, &out.lse}) {
    std::fill_n(tensor->data<double>(), total_tokens, 0.0);
  }
  double sum = 0;
  for (int64_t t = 0; t < total_tokens; ++t) {
    const double weight = WeightOf(tokens, t);
    if (weight == 0) continue;
    const int32_t target = tokens.target_ids.data()[t];
    const Row row(raw(t), options);
    out.per_token.data<double>()[t] = row.Loss(target, options);
    out.logprobs.data<double>()[t] = row.z[target] - row.lse;
    out.entropies.data<double>()[t] = row.entropy;
    out.lse.data<double>()[t] = row.lse;
    sum += weight * row.Loss(target, options);
  }
  *out.loss.data<double>() = FactorOf(options, WeightSum(tokens, total_tokens)) * sum;
}

// add(t, du): takes the gradient of the raw logits of a token that counts.
template <class RawLogits, class Add>
void Backward(const CrossEntropyTokens& tokens, const CrossEntropyOptions& options,
              const CrossEntropyUpstream& upstream, int64_t total_tokens, const RawLogits& raw,
              const Add& add) {
  const double factor =
      ReadOr(upstream.d_loss, 0, 0) * FactorOf(options, WeightSum(tokens, total_tokens));
  for (int64_t t = 0; t < total_tokens; ++t) {
    const double weight = WeightOf(tokens, t);
    if (weight == 0) continue;
    const Row row(raw(t), options);
    add(t, row.Gradient(tokens.target_ids.data()[t], options,
                        factor * weight + ReadOr(upstream.d_per_token, t, 0),
                        ReadOr(upstream.d_logprobs, t, 0), ReadOr(upstream.d_entropies, t, 0)));
  }
}

}  // namespace varlen::cross_entropy_reference
