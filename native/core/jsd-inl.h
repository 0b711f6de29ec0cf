// The generalized Jensen-Shannon divergence of vectors of words (jsd.h), and its gradient. Included
// once per target.
#if defined(VARLEN_CORE_JSD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_JSD_INL_H_
#undef VARLEN_CORE_JSD_INL_H_
#else
#define VARLEN_CORE_JSD_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/elementary-inl.h"
#include "core/jsd.h"
#include "core/row-softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// ln q and ln p of a vector of words, the mixture's, and the probabilities.
struct Words {
  Vector log_q, log_p, q, p;
};

class Divergence {
 public:
  Divergence(const JsdOptions& options, double student_lse, double teacher_lse)
      : student_(student_lse),
        teacher_(teacher_lse),
        beta_(options.beta),
        floor_(options.teacher_floor < 0 ? options.teacher_floor : -kInfinity) {}

  HWY_INLINE Words Read(Vector student, Vector teacher) const {
    const Vector log_q = student_(student);
    const Vector log_p = hn::Max(teacher_(teacher), hn::Set(Floats(), floor_));
    return {log_q, log_p, Exp(log_q), Exp(log_p)};
  }
  // What the words add to L, and q h.
  HWY_INLINE void Add(const Words& w, Vector& loss, Vector& inner) const {
    const Floats d;
    if (beta_ == 0) {
      loss = hn::Add(loss, MulOrZero(hn::Sub(w.log_p, w.log_q), w.p));
      return;
    }
    const Vector qh = MulOrZero(Slope(w), w.q);
    inner = hn::Add(inner, qh);
    loss = hn::Add(loss, qh);
    if (beta_ == 1) return;
    const Vector log_ratio = hn::Sub(w.log_p, LogMixture(w));
    loss = hn::MulAdd(hn::Set(d, beta_), MulOrZero(log_ratio, w.p), loss);
  }
  // dz.
  HWY_INLINE Vector Gradient(const Words& w, Vector inner) const {
    if (beta_ == 0) return hn::Sub(w.q, w.p);
    return MulOrZero(hn::Sub(Slope(w), inner), w.q);
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  // ln((1 - beta) q + beta p), from the larger of the two terms.
  HWY_INLINE Vector LogMixture(const Words& w) const {
    const Floats d;
    const Vector a = hn::Add(w.log_q, hn::Set(d, std::log1p(-beta_)));
    const Vector b = hn::Add(w.log_p, hn::Set(d, std::log(beta_)));
    const Vector high = hn::Max(a, b), low = hn::Min(a, b);
    const Vector gap = hn::IfThenElse(hn::Eq(low, hn::Set(d, -kInfinity)), low, hn::Sub(low, high));
    return hn::Add(high, Log(hn::Add(hn::Set(d, 1.0f), Exp(gap))));
  }
  // h.
  HWY_INLINE Vector Slope(const Words& w) const {
    if (beta_ == 1) return hn::Sub(w.log_q, w.log_p);
    return hn::Mul(hn::Set(Floats(), 1 - beta_), hn::Sub(w.log_q, LogMixture(w)));
  }

  LogProbabilities student_, teacher_;
  float beta_, floor_;
};

// Adds n words of one row to its L and sum of q h; whole vectors of z and y are readable.
HWY_INLINE void AddDivergence(const Divergence& divergence, const float* z, const float* y,
                              int64_t n, double& loss, double& inner) {
  const Floats d;
  const int64_t whole = n / kLanes * kLanes;
  Vector losses = hn::Zero(d), inners = hn::Zero(d);
  for (int64_t i = 0; i < whole; i += kLanes) {
    divergence.Add(divergence.Read(hn::LoadU(d, z + i), hn::LoadU(d, y + i)), losses, inners);
  }
  if (whole < n) {
    Vector last_loss = hn::Zero(d), last_inner = hn::Zero(d);
    divergence.Add(divergence.Read(hn::LoadU(d, z + whole), hn::LoadU(d, y + whole)), last_loss,
                   last_inner);
    const auto tail = hn::FirstN(d, static_cast<size_t>(n - whole));
    losses = hn::Add(losses, hn::IfThenElseZero(tail, last_loss));
    inners = hn::Add(inners, hn::IfThenElseZero(tail, last_inner));
  }
  loss += hn::GetLane(hn::SumOfLanes(d, losses));
  inner += hn::GetLane(hn::SumOfLanes(d, inners));
}

// Turns n logits z of the student into du, in place, given the teacher's y. Whole vectors are read
// and written.
HWY_INLINE void DifferentiateDivergence(const Divergence& divergence, const Activation& activation,
                                        double inner, float factor, const float* y, int64_t n,
                                        float* z) {
  const Floats d;
  const Vector inners = hn::Set(d, static_cast<float>(inner)), factors = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector logit = hn::LoadU(d, z + i);
    const Words words = divergence.Read(logit, hn::LoadU(d, y + i));
    const Vector dz = hn::Mul(factors, divergence.Gradient(words, inners));
    hn::StoreU(activation.Backward(dz, logit), d, z + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_JSD_INL_H_
