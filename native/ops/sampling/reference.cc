#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/op_reference.h"
#include "ops/sampling/sampling.h"

namespace varlen::sampling {

Status RunReference(const Forward& params) {
  const int64_t words = params.logits.shape[1];
  for (int64_t row = 0; row < params.logits.shape[0]; ++row) {
    const auto z = [&](int64_t i) { return ReadDouble(params.logits, row * words + i); };
    std::vector<int64_t> order(static_cast<size_t>(words));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return z(a) > z(b); });
    const double max = z(order[0]);
    if (!std::isfinite(max)) return BadRow(row);

    double policy_sum = 0;
    for (int64_t i = 0; i < words; ++i) policy_sum += std::exp(z(i) - max);
    int64_t token = order[0];
    double logprob = 0, kept_log_mass = 0;
    if (params.temperature > 0) {
      std::vector<double> mass;  // in order, the largest is 1
      for (int64_t word : order) mass.push_back(std::exp((z(word) - max) / params.temperature));
      const double all = std::accumulate(mass.begin(), mass.end(), 0.0);
      size_t kept = mass.size();
      if (params.top_k > 0) kept = std::min(kept, static_cast<size_t>(params.top_k));
      if (params.top_p < 1) {
        const double first = std::accumulate(mass.begin(), mass.begin() + kept, 0.0);
        double sum = 0;
        size_t n = 0;
        while (n < kept && sum < params.top_p * first) sum += mass[n++];
        kept = n;
      }
      while (mass[kept - 1] < params.min_p) --kept;
      const double kept_mass = std::accumulate(mass.begin(), mass.begin() + kept, 0.0);

      std::vector<size_t> by_index(kept);
      std::iota(by_index.begin(), by_index.end(), 0);
      std::sort(by_index.begin(), by_index.end(),
                [&](size_t a, size_t b) { return order[a] < order[b]; });
      const double u = (static_cast<uint32_t>(params.random.data()[row]) + 0.5) * 0x1p-32;
      double sum = 0;
      size_t chosen = by_index[0];
      for (size_t n : by_index) {
        if (mass[n] == 0) continue;
        chosen = n;
        sum += mass[n];
        if (sum > u * kept_mass) break;
      }
      token = order[chosen];
      logprob = (z(token) - max) / params.temperature - std::log(kept_mass);
      kept_log_mass = std::log(kept_mass) - std::log(all);
    }
    params.tokens.data<int32_t>()[row] = static_cast<int32_t>(token);
    params.logprobs.data<double>()[row] = logprob;
    params.policy_logprobs.data<double>()[row] = z(token) - max - std::log(policy_sum);
    params.kept_log_mass.data<double>()[row] = kept_log_mass;
  }
  return {};
}

}  // namespace varlen::sampling
