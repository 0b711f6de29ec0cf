#include <algorithm>
#include <cmath>

#include "core/cross-entropy-reference.h"
#include "core/linear-head-reference.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden {

Status RunReference(const Statistics& p) {
  CrossEntropyOptions options;
  options.temperature = p.temperature;
  options.softcap = p.softcap;
  options.logit_scale = p.logit_scale;
  const int64_t total = p.head.total_tokens();
  double* out = p.statistics.data<double>();
  std::fill_n(out, p.statistics.size(), 0.0);
  for (int64_t t = 0; t < total; ++t) {
    if (cross_entropy_reference::WeightOf(p.tokens, t) == 0) continue;
    const cross_entropy_reference::Row row(ReferenceLogits(p.head, t), options);
    const int64_t target = p.tokens.target_ids.data()[t] - p.shard.first_word;
    const bool here = target >= 0 && target < p.head.vocab_size();
    double squares = 0;
    for (double z : row.z) squares += std::exp(2 * (z - row.lse));
    out[kStatisticLse * total + t] = row.lse;
    out[kStatisticTarget * total + t] = here ? row.z[static_cast<size_t>(target)] : 0;
    out[kStatisticEntropy * total + t] = row.entropy;
    out[kStatisticSquares * total + t] = squares;
    out[kStatisticMean * total + t] = row.mean;
  }
  return {};
}

Status RunReference(const Forward& p) {
  cross_entropy_reference::Forward(
      p.tokens, p.options, p.head.total_tokens(),
      [&](int64_t t) { return ReferenceLogits(p.head, t); }, p.out);
  return {};
}

Status RunReference(const Backward& p) {
  const ReferenceHeadGradients gradients(p.head, p.gradients);
  cross_entropy_reference::Backward(
      p.tokens, p.options, p.upstream, p.head.total_tokens(),
      [&](int64_t t) { return ReferenceLogits(p.head, t); },
      [&](int64_t t, const std::vector<double>& du) { gradients.Add(t, du); });
  return {};
}

}  // namespace varlen::cross_entropy_from_hidden
