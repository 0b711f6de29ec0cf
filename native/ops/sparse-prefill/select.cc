#include "ops/sparse-prefill/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace varlen::sparse_prefill {
namespace {

struct Better {
  const float* scores;
  bool operator()(int32_t a, int32_t b) const {
    const float x = scores[a], y = scores[b];
    if (x > y) return true;
    if (x < y) return false;
    const bool x_nan = std::isnan(x), y_nan = std::isnan(y);
    return x_nan != y_nan ? y_nan : a < b;
  }
};

std::vector<int32_t> Ascending(std::vector<int32_t> indices) {
  std::sort(indices.begin(), indices.end());
  return indices;
}

// 0 .. n - 1 with the forced ones taken out.
std::vector<int32_t> Free(int64_t n, int64_t forced) {
  std::vector<int32_t> free(static_cast<size_t>(std::max<int64_t>(0, n - forced)));
  std::iota(free.begin(), free.end(), static_cast<int32_t>(forced));
  return free;
}

}  // namespace

std::vector<int32_t> SelectTop(const float* scores, int64_t n, int64_t k, int64_t forced) {
  forced = std::clamp<int64_t>(forced, 0, n);
  k = std::min(n, std::max(k, forced));
  std::vector<int32_t> chosen(static_cast<size_t>(forced));
  std::iota(chosen.begin(), chosen.end(), 0);
  std::vector<int32_t> free = Free(n, forced);
  const auto wanted = free.begin() + (k - forced);
  if (wanted != free.end()) std::nth_element(free.begin(), wanted, free.end(), Better{scores});
  chosen.insert(chosen.end(), free.begin(), wanted);
  return Ascending(std::move(chosen));
}

std::vector<int32_t> SelectCoverage(const float* scores, int64_t n, double coverage, int64_t min,
                                    int64_t max, int64_t forced) {
  forced = std::clamp<int64_t>(forced, 0, n);
  max = std::max(std::min(max, n), forced);
  min = std::clamp(min, forced, max);
  std::vector<int32_t> order = Free(n, forced);
  std::sort(order.begin(), order.end(), Better{scores});
  double total = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) total += std::isnan(scores[i]) ? 0.0 : double{scores[i]};
  std::vector<int32_t> chosen(static_cast<size_t>(forced));
  std::iota(chosen.begin(), chosen.end(), 0);
  for (int32_t i : chosen) sum += std::isnan(scores[i]) ? 0.0 : double{scores[i]};
  for (int32_t i : order) {
    const auto taken = static_cast<int64_t>(chosen.size());
    if (taken >= max) break;
    if (taken >= min && !(sum < coverage * total - 1e-6 * total)) break;
    chosen.push_back(i);
    sum += std::isnan(scores[i]) ? 0.0 : double{scores[i]};
  }
  return Ascending(std::move(chosen));
}

Stride FindStride(const float* mass, int64_t n, const std::vector<int64_t>& candidates,
                  int64_t fixed_phase) {
  double total = 0;
  for (int64_t x = 0; x < n; ++x) total += mass[x];
  Stride best{1, 0, -std::numeric_limits<double>::infinity()};
  if (!(total > 0)) return {1, 0, 0};
  std::vector<float> sums;
  for (int64_t s : candidates) {
    if (s < 1 || s > n) continue;
    Stride found{s, fixed_phase < 0 ? 0 : fixed_phase % s, 0};
    double most = 0;
    if (fixed_phase >= 0) {
      for (int64_t x = found.phase; x < n; x += s) most += mass[x];
    } else {
      // Whole periods are added as rows: contiguous, whatever the stride.
      sums.assign(static_cast<size_t>(s), 0.0f);
      for (int64_t row = 0; row < n; row += s) {
        const int64_t width = std::min(s, n - row);
        const float* from = mass + row;
        float* to = sums.data();
        for (int64_t x = 0; x < width; ++x) to[x] += from[x];
      }
      found.phase = std::max_element(sums.begin(), sums.end()) - sums.begin();
      most = sums[static_cast<size_t>(found.phase)];
    }
    found.gain = most / total - 1.0 / static_cast<double>(s);
    if (found.gain > best.gain || (found.gain == best.gain && s > best.stride)) best = found;
  }
  return std::isfinite(best.gain) ? best : Stride{1, 0, 0};
}

}  // namespace varlen::sparse_prefill
