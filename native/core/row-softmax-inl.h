// The softmax of one row that arrives in segments, and its gradient: what every loss over a
// vocabulary shares. Included once per target, after core/isa.h and Highway's foreach_target.h.
#if defined(VARLEN_CORE_ROW_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_ROW_SOFTMAX_INL_H_
#undef VARLEN_CORE_ROW_SOFTMAX_INL_H_
#else
#define VARLEN_CORE_ROW_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/linear-logits.h"
#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

HWY_INLINE Vector Exp(Vector x) {
  return Exp2<6>(hn::Mul(x, hn::Set(Floats(), 1.4426950408889634f)));  // log2(e)
}

// From a raw dot product to a logit, and back for gradients: z = cap(scale * (u + bias)) /
// temperature, where cap(x) = softcap tanh(x / softcap).
class Activation {
 public:
  explicit Activation(const LogitShape& shape)
      : scale_(shape.logit_scale),
        softcap_(shape.softcap),
        inverse_softcap_(shape.softcap > 0 ? 1 / shape.softcap : 0),
        inverse_temperature_(1 / shape.temperature),
        to_tanh_(shape.softcap > 0 ? shape.temperature / shape.softcap : 0) {}

  bool identity() const { return softcap_ == 0 && scale_ * inverse_temperature_ == 1; }

  HWY_INLINE Vector Forward(Vector u) const {
    const Floats d;
    if (softcap_ == 0) return hn::Mul(u, hn::Set(d, scale_ * inverse_temperature_));
    const Vector ratio = hn::Mul(u, hn::Set(d, scale_ * inverse_softcap_));
    return hn::Mul(Tanh(ratio), hn::Set(d, softcap_ * inverse_temperature_));
  }
  // du from dz at the logit z.
  HWY_INLINE Vector Backward(Vector dz, Vector z) const {
    const Floats d;
    const Vector scaled = hn::Mul(dz, hn::Set(d, scale_ * inverse_temperature_));
    if (softcap_ == 0) return scaled;
    const Vector tanh = hn::Mul(z, hn::Set(d, to_tanh_));
    return hn::Mul(scaled, hn::NegMulAdd(tanh, tanh, hn::Set(d, 1.0f)));
  }

 private:
  float scale_, softcap_, inverse_softcap_, inverse_temperature_, to_tanh_;
};

// z = Forward(u + bias) in place for n elements; whole vectors of `row` are read and written.
// `bias` may be null.
HWY_INLINE void ActivateSegment(const Activation& activation, const float* bias, int64_t n,
                                float* row) {
  const Floats d;
  if (bias == nullptr && activation.identity()) return;
  for (int64_t i = 0; i < n; i += kLanes) {
    Vector u = hn::LoadU(d, row + i);
    if (bias != nullptr) u = hn::Add(u, hn::LoadU(d, bias + i));
    hn::StoreU(activation.Forward(u), d, row + i);
  }
}

// Sums over the logits of one row seen so far, relative to their maximum (Milakov and Gimelshein
// 2018). Segments must come in one order and cut for the same bits.
struct RowSums {
  float max = -std::numeric_limits<float>::infinity();
  double exp = 0;      // sum e^(z - max)
  double shifted = 0;  // sum e^(z - max) (z - max)
  double squares = 0;  // sum e^(2 (z - max))
  double logits = 0;   // sum z
  int64_t count = 0;

  // A row whose logits are all -infinity has no distribution; its statistics are NaN.
  double Shift() const { return std::isinf(max) && max < 0 ? 0.0 : double{max}; }
  double Lse() const { return Shift() + std::log(exp); }
  double Entropy() const { return std::log(exp) - shifted / exp; }
  double SumSquares() const { return squares / (exp * exp); }
  double MeanLogit() const { return logits / static_cast<double>(count); }
};

// Adds n logits; whole vectors of `z` are readable.
HWY_INLINE void AddLogits(const float* z, int64_t n, RowSums& sums) {
  const Floats d;
  const Vector lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  const int64_t whole = n / kLanes * kLanes;
  const auto tail = hn::FirstN(d, static_cast<size_t>(n - whole));

  Vector max = lowest;
  for (int64_t i = 0; i < whole; i += kLanes) max = hn::Max(hn::LoadU(d, z + i), max);
  if (whole < n) max = hn::Max(hn::IfThenElse(tail, hn::LoadU(d, z + whole), lowest), max);
  const float before = sums.max;
  sums.max = std::max(before, hn::GetLane(hn::MaxOfLanes(d, max)));
  const bool none = sums.max == -std::numeric_limits<float>::infinity();
  const float shift = none ? 0.0f : sums.max;

  Vector exp = hn::Zero(d), shifted = hn::Zero(d), squares = hn::Zero(d), logits = hn::Zero(d);
  const Vector shifts = hn::Set(d, shift);
  const auto add = [&](Vector value, Vector e, Vector x) HWY_ATTR {
    exp = hn::Add(exp, e);
    // Not e * x alone: 0 * -infinity is no number, and an impossible token adds nothing.
    shifted = hn::Add(shifted, hn::IfThenElseZero(hn::Gt(e, hn::Zero(d)), hn::Mul(e, x)));
    squares = hn::MulAdd(e, e, squares);
    logits = hn::Add(logits, value);
  };
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vector value = hn::LoadU(d, z + i);
    const Vector x = hn::Sub(value, shifts);
    add(value, Exp(x), x);
  }
  if (whole < n) {
    const Vector value = hn::IfThenElseZero(tail, hn::LoadU(d, z + whole));
    const Vector x = hn::Sub(value, shifts);
    add(value, hn::IfThenElseZero(tail, Exp(x)), x);
  }
  // What came before is relative to the old maximum: e^(z - m') = f e^(z - m), and
  // f e^(z - m) (z - m') = f (e^(z - m) (z - m) + (m - m') e^(z - m)).
  const double step = sums.exp > 0 ? double{before} - double{shift} : 0;
  const double factor = sums.exp > 0 ? std::exp(step) : 1;
  sums.shifted = factor * (sums.shifted + step * sums.exp);
  sums.exp *= factor;
  sums.squares *= factor * factor;
  sums.exp += hn::GetLane(hn::SumOfLanes(d, exp));
  sums.shifted += hn::GetLane(hn::SumOfLanes(d, shifted));
  sums.squares += hn::GetLane(hn::SumOfLanes(d, squares));
  sums.logits += hn::GetLane(hn::SumOfLanes(d, logits));
  sums.count += n;
}

// log p = z - lse for logits that may be far larger than 1: the log-sum-exp in two floats, the
// first of which subtracts without error from logits near it.
class LogProbabilities {
 public:
  explicit LogProbabilities(double lse)
      : high_(static_cast<float>(lse)), low_(static_cast<float>(lse - double{high_})) {}
  HWY_INLINE Vector operator()(Vector z) const {
    const Floats d;
    return hn::Sub(hn::Sub(z, hn::Set(d, high_)), hn::Set(d, low_));
  }

 private:
  float high_, low_;
};

// x y, and 0 where y is: an impossible token has log p = -infinity.
HWY_INLINE Vector MulOrZero(Vector x, Vector y) {
  return hn::IfThenZeroElse(hn::Eq(y, hn::Zero(Floats())), hn::Mul(x, y));
}

// Turns logits of one row, words first .. first + n - 1, into du, in place. Whole vectors are read
// and written. `scratch` has room for per_row floats.
HWY_INLINE void DifferentiateSegment(const Activation& activation, const LogitGradients& gradients,
                                     int64_t row, int64_t first, int64_t n, float* scratch,
                                     float* z) {
  const Floats d;
  const int32_t* words = gradients.words + row * gradients.per_row;
  const float* sparse = gradients.sparse + row * gradients.per_row;
  const int32_t* last = words + gradients.per_row;
  const int64_t begin = std::lower_bound(words, last, first) - words;
  const int64_t end = std::lower_bound(words + begin, last, first + n) - words;
  // Through the cap a gradient needs the logit, which the dense part overwrites.
  for (int64_t i = begin; i < end; ++i) {
    const Vector logit = hn::Set(d, z[words[i] - first]);
    scratch[i] = hn::GetLane(activation.Backward(hn::Set(d, sparse[i]), logit));
  }

  const DenseGradient& dense = gradients.dense[row];
  const LogProbabilities log_probabilities(gradients.lse[row]);
  const Vector scale = hn::Set(d, dense.scale), slope = hn::Set(d, dense.slope),
               offset = hn::Set(d, dense.offset);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector logit = hn::LoadU(d, z + i);
    const Vector log_p = log_probabilities(logit);
    const Vector p = Exp(log_p);
    Vector dz = hn::MulAdd(p, scale, offset);
    if (dense.slope != 0) dz = hn::Add(dz, MulOrZero(hn::Mul(slope, log_p), p));
    hn::StoreU(activation.Backward(dz, logit), d, z + i);
  }
  for (int64_t i = begin; i < end; ++i) {
    float& at = z[words[i] - first];
    at = gradients.sparse_alone ? scratch[i] : at + scratch[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_ROW_SOFTMAX_INL_H_
