#include "core/vocabulary-shard.h"

#include <algorithm>
#include <limits>
#include <string>

namespace varlen {

std::vector<int32_t> VocabularyShard::Own(const std::vector<int32_t>& targets) const {
  std::vector<int32_t> own;
  own.reserve(targets.size());
  for (int32_t target : targets) own.push_back(static_cast<int32_t>(target - first_word));
  return own;
}

Status VocabularyShard::Validate(int64_t words, Device device) const {
  if (!split() && first_word == 0) return {};
  if (device.kind == DeviceKind::kCuda) {
    return {Code::kUnsupported, "totalWords", "has no CUDA kernel for a vocabulary in parts", {}};
  }
  if (total_words < 1 || total_words > std::numeric_limits<int32_t>::max()) {
    return Invalid(Code::kRange, "totalWords", "is out of range", std::to_string(total_words),
                   "1..2^31 - 1");
  }
  if (first_word < 0 || first_word + words > total_words) {
    return Invalid(
        Code::kRange, "firstWord", "leaves the vocabulary",
        "words " + std::to_string(first_word) + ".." + std::to_string(first_word + words - 1),
        "words of 0.." + std::to_string(total_words - 1));
  }
  return {};
}

namespace {
// column(statistic)[row]
template <class Element>
void Gather(const Tensor& statistics, RowStatistic statistic, const std::vector<int32_t>& rows,
            Element* out) {
  if (out == nullptr) return;
  const double* from = statistics.data<double>() + statistic * statistics.shape[1];
  for (size_t i = 0; i < rows.size(); ++i) out[i] = static_cast<Element>(from[rows[i]]);
}
template <class Element>
void Scatter(const Element* from, const std::vector<int32_t>& rows, RowStatistic statistic,
             const Tensor& statistics) {
  double* to = statistics.data<double>() + statistic * statistics.shape[1];
  std::fill_n(to, statistics.shape[1], 0.0);
  for (size_t i = 0; i < rows.size(); ++i) to[rows[i]] = from[i];
}
}  // namespace

void ReadStatistics(const Tensor& statistics, const std::vector<int32_t>& rows,
                    const RowStatistics& out) {
  Gather(statistics, kStatisticLse, rows, out.lse);
  Gather(statistics, kStatisticTarget, rows, out.target_logit);
  Gather(statistics, kStatisticEntropy, rows, out.entropy);
  Gather(statistics, kStatisticSquares, rows, out.sum_squares);
  Gather(statistics, kStatisticMean, rows, out.mean_logit);
}

void WriteStatistics(const RowStatistics& from, const std::vector<int32_t>& rows,
                     const Tensor& statistics) {
  Scatter(from.lse, rows, kStatisticLse, statistics);
  Scatter(from.target_logit, rows, kStatisticTarget, statistics);
  Scatter(from.entropy, rows, kStatisticEntropy, statistics);
  Scatter(from.sum_squares, rows, kStatisticSquares, statistics);
  Scatter(from.mean_logit, rows, kStatisticMean, statistics);
}

}  // namespace varlen
