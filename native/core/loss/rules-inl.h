// The policy loss of one token: surrogates and KL estimates (rl-objectives, sections 4 and 7), once
// for vectors of the CPU and for the scalars of a GPU thread. Math is the arithmetic they differ
// in:
//   V, Mask; Set(float), Exp(V), ExpAll(V) -> {exp, minus, rest}, Log(V), Min, Max, Abs, Lt, Le,
//   Select(Mask, V, V), And(Mask, Mask), AndNot(not this, Mask)
// and V has + - *, negation by 0 - x, and division. Included once per target.
#if defined(VARLEN_CORE_LOSS_RULES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_LOSS_RULES_INL_H_
#undef VARLEN_CORE_LOSS_RULES_INL_H_
#else
#define VARLEN_CORE_LOSS_RULES_INL_H_
#endif

#include "core/loss/config.h"

// A GPU source defines VARLEN_RULE_SCALAR before it includes this: what stands before a function.
#undef VARLEN_RULE_FN
#undef VARLEN_RULE_TARGET
#if defined(VARLEN_RULE_SCALAR)
#define VARLEN_RULE_FN VARLEN_RULE_SCALAR
#define VARLEN_RULE_TARGET scalar
#else
#include "hwy/highway.h"
#define VARLEN_RULE_FN HWY_INLINE
#define VARLEN_RULE_TARGET HWY_NAMESPACE
HWY_BEFORE_NAMESPACE();
#endif
namespace varlen::loss {
namespace VARLEN_RULE_TARGET {

// A token's surrogate and which of its bounds were chosen.
template <class M>
struct Surrogate {
  typename M::V value;
  typename M::V by_log_ratio;  // derivative by the log of `ratio`
  typename M::V by_logprob;    // derivative by the log-probability beside that
  typename M::Mask high, low, dual;
};

template <class M>
struct Facts {
  typename M::V ratio;  // of the token or of its sequence
  typename M::V x;      // the token's clamped log ratio
  typename M::V logprob, old_logprob, advantage;
  typename M::V weight;  // VESPO's phi of the sequence; 1 at level none
};

// What every rule starts from: no bound chosen, no derivative.
template <class M>
VARLEN_RULE_FN Surrogate<M> Unbounded(typename M::V value) {
  const auto zero = M::Set(0);
  return {value, zero, zero, M::Lt(zero, zero), M::Lt(zero, zero), M::Lt(zero, zero)};
}

// -weight * A * logprob with a weight that is a constant to differentiation.
template <class M>
VARLEN_RULE_FN Surrogate<M> Weighted(typename M::V weight, const Facts<M>& f) {
  const auto slope = M::Set(0) - weight * f.advantage;
  Surrogate<M> s = Unbounded<M>(slope * f.logprob);
  s.by_logprob = slope;
  return s;
}

template <class M>
VARLEN_RULE_FN Surrogate<M> Ppo(const float* clip, const Facts<M>& f) {
  const auto zero = M::Set(0), low = M::Set(1 - clip[0]), high = M::Set(1 + clip[1]);
  const auto plain = zero - f.advantage * f.ratio;
  const auto clipped = zero - f.advantage * M::Min(M::Max(f.ratio, low), high);
  const auto bound = M::Lt(plain, clipped);  // a tie selects the plain branch
  Surrogate<M> s = Unbounded<M>(M::Select(bound, clipped, plain));
  s.by_log_ratio = M::Select(bound, zero, plain);
  s.high = M::And(M::Lt(zero, f.advantage), M::Lt(high, f.ratio));
  s.low = M::And(M::Lt(f.advantage, zero), M::Lt(f.ratio, low));
  return s;
}

// PPO, and for A < 0 no more than -A c.
template <class M>
VARLEN_RULE_FN Surrogate<M> Dual(const float* clip, const Facts<M>& f) {
  const auto zero = M::Set(0);
  Surrogate<M> s = Ppo<M>(clip, f);
  const auto cap = zero - f.advantage * M::Set(clip[2]);
  s.dual = M::And(M::Lt(f.advantage, zero), M::Lt(cap, s.value));
  s.value = M::Select(s.dual, cap, s.value);
  s.by_log_ratio = M::Select(s.dual, zero, s.by_log_ratio);
  return s;
}

template <class M>
VARLEN_RULE_FN Surrogate<M> Cispo(const float* clip, const Facts<M>& f) {
  const auto low = M::Set(clip[0]), high = M::Set(clip[1]);
  Surrogate<M> s = Weighted<M>(M::Min(M::Max(f.ratio, low), high), f);
  s.high = M::Lt(high, f.ratio);
  s.low = M::Lt(f.ratio, low);
  return s;
}

// A soft gate, 4 / tau * sigmoid(tau (r - 1)), in place of a clip.
template <class M>
VARLEN_RULE_FN Surrogate<M> Sapo(const float* clip, const Facts<M>& f) {
  const auto zero = M::Set(0), one = M::Set(1);
  const auto positive = M::Lt(zero, f.advantage);
  const auto tau = M::Select(positive, M::Set(clip[0]), M::Set(clip[1]));
  const auto slope = M::Select(positive, M::Set(4 / clip[0]), M::Set(4 / clip[1]));
  const auto inverse = M::Exp(zero - tau * (f.ratio - one)) + one;  // 1 / gate
  const auto gate = one / inverse;
  Surrogate<M> s = Unbounded<M>(zero - f.advantage * slope * gate);
  // 1 - gate loses its digits where the gate is open: (inverse - 1) * gate does not.
  s.by_log_ratio = zero - M::Set(4) * f.advantage * gate * ((inverse - one) * gate) * f.ratio;
  return s;
}

// The sequence's geometric mean of clipped ratios is `ratio`; the token only counts its clip.
template <class M>
VARLEN_RULE_FN Surrogate<M> Gmpo(const float* clip, const Facts<M>& f) {
  const auto zero = M::Set(0);
  Surrogate<M> s = Unbounded<M>(zero - f.advantage * f.ratio);
  s.by_log_ratio = s.value;
  s.high = M::And(M::Lt(zero, f.advantage), M::Lt(M::Set(clip[1]), f.x));
  s.low = M::And(M::Lt(f.advantage, zero), M::Lt(f.x, M::Set(-clip[0])));
  return s;
}
// GMPO's y_t: the log ratio bounded on the side that the advantage pulls to, 0 where A = 0.
template <class M>
VARLEN_RULE_FN typename M::V GmpoLog(const float* clip, typename M::V x, typename M::V advantage) {
  const auto zero = M::Set(0);
  const auto upper = M::Min(x, M::Set(clip[1])), lower = M::Max(x, M::Set(-clip[0]));
  return M::Select(M::Lt(zero, advantage), upper, M::Select(M::Lt(advantage, zero), lower, zero));
}

// Divergence of the token's own two-way distribution bounds what moves it further away.
template <class M, bool kBinaryKl>
VARLEN_RULE_FN Surrogate<M> Dppo(const float* clip, const Facts<M>& f) {
  const auto zero = M::Set(0), epsilon = M::Set(static_cast<float>(kDppoEpsilon));
  const auto pi = M::ExpAll(f.logprob), old = M::ExpAll(f.old_logprob);
  const auto positive = M::Lt(zero, f.advantage);
  const auto further = pi.exp - old.exp;
  auto distance = M::Select(positive, further, zero - further);  // the way the advantage pulls
  if constexpr (kBinaryKl) {
    const auto not_pi = zero - pi.minus, not_old = zero - old.minus;  // 1 - p, near 1 too
    const auto rest = not_old * (M::Log(not_old + epsilon) - M::Log(not_pi + epsilon));
    const auto divergence = old.exp * (f.old_logprob - f.logprob) + rest;
    // Moving back towards the old policy is always allowed.
    distance = M::Select(M::Le(distance, zero), M::Set(-1), divergence);
  }
  const auto keep = M::Le(distance, M::Select(positive, M::Set(clip[1]), M::Set(clip[0])));
  Surrogate<M> s = Weighted<M>(M::Select(keep, M::Min(f.ratio, M::Set(clip[2])), zero), f);
  s.high = M::AndNot(keep, positive);
  s.low = M::AndNot(keep, M::Lt(f.advantage, zero));
  return s;
}

template <class M>
VARLEN_RULE_FN Surrogate<M> Dro(const float* clip, const Facts<M>& f) {
  const auto beta = M::Set(clip[0]), distance = f.logprob - f.old_logprob;
  Surrogate<M> s =
      Unbounded<M>(M::Set(0.5f) * beta * distance * distance - f.logprob * f.advantage);
  s.by_logprob = beta * distance - f.advantage;
  return s;
}

template <class M, Clip kRule>
VARLEN_RULE_FN Surrogate<M> SurrogateOf(const float* clip, const Facts<M>& f) {
  if constexpr (kRule == Clip::kNone) {
    Surrogate<M> s = Unbounded<M>(M::Set(0) - f.advantage * f.ratio);
    s.by_log_ratio = s.value;
    return s;
  } else if constexpr (kRule == Clip::kPpo) {
    return Ppo<M>(clip, f);
  } else if constexpr (kRule == Clip::kDual) {
    return Dual<M>(clip, f);
  } else if constexpr (kRule == Clip::kCispo) {
    return Cispo<M>(clip, f);
  } else if constexpr (kRule == Clip::kSapo) {
    return Sapo<M>(clip, f);
  } else if constexpr (kRule == Clip::kGmpo) {
    return Gmpo<M>(clip, f);
  } else if constexpr (kRule == Clip::kDppoTv) {
    return Dppo<M, false>(clip, f);
  } else if constexpr (kRule == Clip::kDppoKl) {
    return Dppo<M, true>(clip, f);
  } else if constexpr (kRule == Clip::kVespo) {
    return Weighted<M>(f.weight, f);  // level none too, with weight 1
  } else {
    return Dro<M>(clip, f);
  }
}

template <class M>
struct KlTerm {
  typename M::V value, derivative;
};

// Numbers of the KL term as floats.
struct KlNumbers {
  float input_clamp, output_clamp;
  bool straight_through;
  Importance importance;
};

// `raw` is logprob - ref. The estimate's own form is kBase: kK1, kAbs, kK2 or kK3. kPlain: its
// value is not clamped, its derivative its own, and it has no importance weight.
template <class M, Kl kBase, bool kPlain = false>
VARLEN_RULE_FN KlTerm<M> KlOf(const KlNumbers& numbers, typename M::V raw, typename M::V ratio,
                              typename M::Mask ratio_moves) {
  const auto zero = M::Set(0);
  const auto bound = M::Set(numbers.input_clamp);
  const auto d = M::Min(M::Max(raw, zero - bound), bound);
  KlTerm<M> k;
  if constexpr (kBase == Kl::kK1) {
    k = {d, M::Set(1)};
  } else if constexpr (kBase == Kl::kAbs) {
    k = {M::Abs(d),
         M::Select(M::Lt(zero, d), M::Set(1), M::Select(M::Lt(d, zero), M::Set(-1), zero))};
  } else if constexpr (kBase == Kl::kK2) {
    k = {M::Set(0.5f) * d * d, d};
  } else {
    const auto terms = M::ExpAll(zero - d);
    k = {terms.rest, zero - terms.minus};
  }
  if constexpr (kPlain) {
    k.derivative = M::Select(M::Le(M::Abs(raw), bound), k.derivative, zero);
    return k;
  }
  if (numbers.straight_through) k.derivative = d;
  const auto limit = M::Set(numbers.output_clamp);
  const auto bounded = M::Min(M::Max(k.value, zero - limit), limit);
  const auto free = M::And(M::And(M::Le(raw, bound), M::Le(zero - bound, raw)),
                           M::And(M::Le(k.value, limit), M::Le(zero - limit, k.value)));
  k.value = bounded;
  k.derivative = M::Select(free, k.derivative, zero);
  if (numbers.importance == Importance::kNone) return k;
  const auto weighted = k.value * ratio;
  k.derivative = k.derivative * ratio;
  if (numbers.importance == Importance::kDifferentiable) {
    // Under an active clamp the weight is a constant too.
    k.derivative = k.derivative + M::Select(M::And(free, ratio_moves), weighted, zero);
  }
  k.value = weighted;
  return k;
}

}  // namespace VARLEN_RULE_TARGET
}  // namespace varlen::loss
#if !defined(VARLEN_RULE_SCALAR)
HWY_AFTER_NAMESPACE();
#endif

#endif  // VARLEN_CORE_LOSS_RULES_INL_H_
