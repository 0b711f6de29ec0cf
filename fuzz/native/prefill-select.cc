// The selections that a prefill plan's indices are made from, for any scores.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops/sparse-prefill/select.h"

namespace prefill = varlen::sparse_prefill;

namespace {

void Check(const std::vector<int32_t>& chosen, int64_t n, int64_t forced) {
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i] < 0 || chosen[i] >= n) std::abort();
    if (i > 0 && chosen[i] <= chosen[i - 1]) std::abort();
    if (static_cast<int64_t>(i) < forced && chosen[i] != static_cast<int32_t>(i)) std::abort();
  }
  if (static_cast<int64_t>(chosen.size()) < std::min(forced, n)) std::abort();
}

}  // namespace

// Eight bytes of numbers, then the scores.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes < 12) return 0;
  const auto n = static_cast<int64_t>((bytes - 8) / sizeof(float));
  std::vector<float> scores(static_cast<size_t>(n));
  std::memcpy(scores.data(), data + 8, scores.size() * sizeof(float));
  const int64_t forced = data[0] % (n + 1);
  const int64_t k = std::min<int64_t>(n, forced + data[1]);
  Check(prefill::SelectTop(scores.data(), n, k, forced), n, forced);
  const double coverage = data[2] / 255.0;
  const int64_t least = std::min<int64_t>(n, data[3]);
  const int64_t most = std::min<int64_t>(n, least + data[4]);
  Check(prefill::SelectCoverage(scores.data(), n, coverage, least, most, forced), n, forced);
  for (float& score : scores) score = std::isfinite(score) ? std::fabs(score) : 0.0F;
  const std::vector<int64_t> strides = {1 + data[5] % n, 1 + data[6] % n, n};
  const prefill::Stride found =
      prefill::FindStride(scores.data(), n, strides, data[7] % 2 == 0 ? -1 : 0);
  if (found.phase < 0 || found.phase >= found.stride) std::abort();
  return 0;
}
