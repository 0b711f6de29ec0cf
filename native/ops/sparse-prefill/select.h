#pragma once

#include <cstdint>
#include <vector>

// Choosing from scores. Larger is better, ties go to the smaller index, NaN comes last: no choice
// depends on threads or on the order of evaluation.
namespace varlen::sparse_prefill {

// Indices of the k best, ascending. Those below `forced` are always among them, and k is at least
// `forced`: a selection that drops the diagonal would leave rows empty.
std::vector<int32_t> SelectTop(const float* scores, int64_t n, int64_t k, int64_t forced);

// The fewest best indices whose sum reaches `coverage` of the total, clamped to [min, max];
// ascending. An item is taken while those before it fall short by more than 1e-6 of the total:
// rounding must not add one. `forced` as above.
std::vector<int32_t> SelectCoverage(const float* scores, int64_t n, double coverage, int64_t min,
                                    int64_t max, int64_t forced);

struct Stride {
  int64_t stride = 1, phase = 0;
  double gain = 0;
};
// The stride and phase whose line holds most more mass than a line of a uniform spread would:
// gain(s, p) = M(s, p) - 1/s with M the share of `mass` at x = p (mod s). Divisors and multiples of
// the true stride both gain less than it does. Ties: the larger stride, then the smaller phase.
// `fixed_phase` < 0 searches phases.
Stride FindStride(const float* mass, int64_t n, const std::vector<int64_t>& candidates,
                  int64_t fixed_phase);

// Minimal PCG32 (O'Neill 2014): the certificate's rows.
class Pcg32 {
 public:
  Pcg32(uint64_t seed, uint64_t stream) : increment_(stream << 1 | 1) {
    Next();
    state_ += seed;
    Next();
  }
  uint32_t Next() {
    const uint64_t old = state_;
    state_ = old * 6364136223846793005u + increment_;
    const auto shifted = static_cast<uint32_t>(((old >> 18) ^ old) >> 27);
    const auto turn = static_cast<uint32_t>(old >> 59);
    return shifted >> turn | shifted << (-turn & 31);
  }
  // Uniform in 0 .. n - 1.
  int64_t Below(int64_t n) {
    return static_cast<int64_t>(uint64_t{Next()} * static_cast<uint64_t>(n) >> 32);
  }

 private:
  uint64_t state_ = 0, increment_;
};

}  // namespace varlen::sparse_prefill
