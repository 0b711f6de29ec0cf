// The policy loss on the CPU: up to three passes over the tokens (sums of each sequence, losses,
// broadcast of a sequence's derivative), compiled per instruction set.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/loss/evaluate.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementary-inl.h"
#include "core/loss/rules-inl.h"
//
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/loss/length_hash.h"
#include "core/loss/loss.h"
#include "core/loss/sequence.h"
#include "core/parallel.h"
#include "core/workspace.h"

#ifndef VARLEN_CORE_LOSS_EVALUATE_ONCE_
#define VARLEN_CORE_LOSS_EVALUATE_ONCE_
namespace varlen::loss {

inline constexpr float kInf = std::numeric_limits<float>::infinity();

// Up to 1024 tokens of one sequence, counted from its start.
struct Block {
  int64_t begin;  // token
  int32_t tokens;
  int32_t sequence;
};

// What one block adds up. `sums` has the slots of Sum; kPgLoss and kKlLoss are without s_i.
struct Partial {
  double sums[kNumSums];
  double derivative;                // of the loss by the sequence's mean log ratio
  double x, y, weight, log_weight;  // of the first pass
  Problem non_finite, positive, bad_weight, missing;
};

struct Call {
  const Config& config;
  const Inputs& in;
  const Outputs& out;
  const Block* blocks;
  Partial* partials;
  SequenceState* sequences;
  double inverse_mean_weight = 1;
  bool propagate;
};

}  // namespace varlen::loss
#endif

HWY_BEFORE_NAMESPACE();
namespace varlen::loss {
namespace HWY_NAMESPACE {

using namespace varlen::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

using TokenMask = hn::Mask<Floats>;

// The arithmetic of rules-inl.h on vectors.
struct VectorMath {
  using V = Vector;
  using Mask = TokenMask;
  static HWY_INLINE V Set(float value) { return hn::Set(Floats(), value); }
  static HWY_INLINE V Exp(V x) { return varlen::HWY_NAMESPACE::ExpAll(x).exp; }
  static HWY_INLINE ExpTerms ExpAll(V x) { return varlen::HWY_NAMESPACE::ExpAll(x); }
  static HWY_INLINE V Log(V x) { return varlen::HWY_NAMESPACE::Log(x); }
  static HWY_INLINE V Min(V a, V b) { return hn::Min(a, b); }
  static HWY_INLINE V Max(V a, V b) { return hn::Max(a, b); }
  static HWY_INLINE V Abs(V a) { return hn::Abs(a); }
  static HWY_INLINE V Select(Mask mask, V yes, V no) { return hn::IfThenElse(mask, yes, no); }
  static HWY_INLINE Mask And(Mask a, Mask b) { return hn::And(a, b); }
  static HWY_INLINE Mask AndNot(Mask refused, Mask a) { return hn::AndNot(refused, a); }
  static HWY_INLINE Mask Lt(V a, V b) { return hn::Lt(a, b); }
  static HWY_INLINE Mask Le(V a, V b) { return hn::Le(a, b); }
};
using M = VectorMath;

inline constexpr int64_t kGroups = kReductionLanes / kLanes;  // vectors per 16 lanes
static_assert(kGroups * kLanes == kReductionLanes);

using Doubles = hn::ScalableTag<double>;
inline constexpr int64_t kDoubleLanes = kLanes / 2;

// A sum of floats in 16 double lanes.
struct WideSum {
  hn::Vec<Doubles> low[kGroups], high[kGroups];
  HWY_INLINE void Clear() {
    for (int g = 0; g < kGroups; ++g) low[g] = high[g] = hn::Zero(Doubles());
  }
  HWY_INLINE void Add(int g, Vector v) {
    const hn::Half<Floats> half;
    low[g] = hn::Add(low[g], hn::PromoteTo(Doubles(), hn::LowerHalf(half, v)));
    high[g] = hn::Add(high[g], hn::PromoteTo(Doubles(), hn::UpperHalf(half, v)));
  }
  HWY_INLINE double Total() const {
    HWY_ALIGN double lanes[kReductionLanes];
    for (int g = 0; g < kGroups; ++g) {
      hn::Store(low[g], Doubles(), lanes + g * kLanes);
      hn::Store(high[g], Doubles(), lanes + g * kLanes + kDoubleLanes);
    }
    for (int64_t width = kReductionLanes / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
  }
};

// The same with float lanes, for statistics: at most 64 additions each.
struct FloatSum {
  Vector sum[kGroups];
  HWY_INLINE void Clear() {
    for (int g = 0; g < kGroups; ++g) sum[g] = hn::Zero(Floats());
  }
  HWY_INLINE void Add(int g, Vector v) { sum[g] = hn::Add(sum[g], v); }
  HWY_INLINE double Total() const {
    WideSum wide;
    wide.Clear();
    for (int g = 0; g < kGroups; ++g) wide.Add(g, sum[g]);
    return wide.Total();
  }
};

struct Extremes {
  Vector min, max;
  HWY_INLINE void Clear() {
    min = M::Set(kInf);
    max = M::Set(-kInf);
  }
  HWY_INLINE void Add(TokenMask ok, Vector v) {
    min = hn::Min(min, hn::IfThenElse(ok, v, M::Set(kInf)));
    max = hn::Max(max, hn::IfThenElse(ok, v, M::Set(-kInf)));
  }
  HWY_INLINE double Min() const { return hn::GetLane(hn::MinOfLanes(Floats(), min)); }
  HWY_INLINE double Max() const { return hn::GetLane(hn::MaxOfLanes(Floats(), max)); }
};

// Elements t .. t + n - 1 of an array; lanes past n are 0.
template <bool kFull, class T>
HWY_INLINE Vector LoadTokens(const T* array, int64_t t, int64_t n) {
  return kFull ? LoadAsFloat(array + t) : LoadFirst(array + t, n);
}
template <bool kFull>
HWY_INLINE void StoreTokens(Vector v, float* array, int64_t t, int64_t n) {
  if constexpr (kFull) {
    StoreFromFloat(v, array + t);
  } else {
    StoreFirst(v, array + t, n);
  }
}
// Where a byte array is not 0; everywhere without one, but never past n.
template <bool kFull>
HWY_INLINE TokenMask LoadMask(const uint8_t* array, int64_t t, int64_t n) {
  const Floats d;
  if (array == nullptr) {
    return kFull ? hn::Eq(hn::Zero(d), hn::Zero(d)) : hn::FirstN(d, static_cast<size_t>(n));
  }
  const hn::Rebind<uint8_t, Floats> du8;
  const hn::RebindToSigned<Floats> di32;
  uint8_t padded[kLanes] = {};
  if constexpr (!kFull) {
    std::memcpy(padded, array + t, static_cast<size_t>(n));
    array = padded;
    t = 0;
  }
  const auto wide = hn::PromoteTo(di32, hn::LoadU(du8, array + t));
  const TokenMask set = hn::RebindMask(d, hn::Ne(wide, hn::Zero(di32)));
  // Lanes past n are off by this, whatever `padded` holds there.
  return kFull ? set : hn::And(set, hn::FirstN(d, static_cast<size_t>(n)));
}

// Adds the tokens of `mask`, lane 0 being token t.
HWY_NOINLINE void Note(Problem& problem, TokenMask mask, int64_t t) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(hn::IfThenElseZero(mask, M::Set(1)), Floats(), lanes);
  for (int64_t i = 0; i < kLanes; ++i) {
    if (lanes[i] != 0) problem.Add(t + i);
  }
}

// The values of some tokens as the passes need them; neutral (0) where a token is not ok.
struct Tokens {
  TokenMask active, ok;  // ok: active, and every value that the loss reads is finite
  Vector logprob, old, x, advantage, weight, ref;
  TokenMask moves;    // the log ratio is inside its clamp
  Vector rollout_y;   // 0 where missing
  TokenMask missing;  // no rollout log-probability
  Vector entropy;
};

// values[t - first] is the log-probability of token t.
struct Logprobs {
  const float* values;
  int64_t first;
};

// When problems of tokens are looked for: not, as they come, or once per block. The last costs the
// hot loop least; a block in which it finds something is done again as they come.
enum class Report { kNo, kYes, kLater };

// What Report::kLater keeps of a block's active tokens.
struct Suspicion {
  Vector probe, largest, least_weight;  // NaN, above 1e-4, below 0: something is wrong
  HWY_INLINE void Clear() { probe = largest = least_weight = M::Set(0); }
  HWY_INLINE bool Any() const {
    const Floats d;
    const auto positive = hn::Gt(largest, M::Set(static_cast<float>(kPositiveLogprob)));
    return !hn::AllFalse(
        d, hn::Or(hn::Or(hn::IsNaN(probe), positive), hn::Lt(least_weight, hn::Zero(d))));
  }
};

// What most calls do without: rollout correction, advantages per token, entropies, losses per
// token, spreading NaN, a KL term other than k3 as it is. Left out at compile time, or their
// branches cost the hot loop its registers.
enum class Extras { kNone, kAny };
inline Extras ExtrasOf(const Call& call) {
  const Config& config = call.config;
  const bool plain_kl = config.kl() == Kl::kNone ||
                        (config.kl() == Kl::kK3 && config.importance() == Importance::kNone &&
                         config.kl_output_clamp == std::numeric_limits<double>::infinity());
  const bool any = !plain_kl || config.rollout() != Correction::kNone ||
                   call.in.advantages_per_token || call.in.entropies != nullptr ||
                   call.out.per_token_loss != nullptr || call.propagate;
  return any ? Extras::kAny : Extras::kNone;
}

// Reads tokens t .. t + n - 1 of sequence s. Problems are noted once, by the pass that says so.
template <bool kFull, Report kReport, Extras kExtras>
HWY_INLINE Tokens Read(const Config& config, const Inputs& in, const Logprobs& logprobs, int32_t s,
                       int64_t t, int64_t n, Partial& partial, Suspicion& suspicion) {
  constexpr bool kAny = kExtras == Extras::kAny;
  const Vector zero = M::Set(0);
  Tokens tokens;
  tokens.active = LoadMask<kFull>(in.loss_mask, t, n);
  tokens.logprob = LoadTokens<kFull>(logprobs.values, t - logprobs.first, n);
  Vector probe = hn::Sub(tokens.logprob, tokens.logprob);  // 0 where finite, else NaN
  Vector largest = tokens.logprob;

  const bool bypass = kAny && config.rollout() == Correction::kBypass;
  Vector rollout = zero;
  tokens.missing = hn::Lt(zero, zero);
  tokens.rollout_y = zero;
  if (kAny && config.rollout() != Correction::kNone &&
      (config.weighs_rollout() || config.reads_old())) {
    rollout = LoadTokens<kFull>(in.rollout_logprobs, t, n);
    largest = hn::Max(largest, hn::IfThenElse(hn::IsNaN(rollout), largest, rollout));
    if (in.kept_log_mass != nullptr) {
      rollout = hn::Add(rollout, LoadTokens<kFull>(in.kept_log_mass, t, n));
    }
    if (!bypass) tokens.missing = hn::And(tokens.active, hn::IsNaN(rollout));
    const Vector known = hn::IfThenElse(tokens.missing, zero, rollout);
    probe = hn::Add(probe, hn::Sub(known, known));
  }
  tokens.old = tokens.logprob;
  if (config.reads_old()) {
    tokens.old = bypass ? rollout : LoadTokens<kFull>(in.old_logprobs, t, n);
    probe = hn::Add(probe, hn::Sub(tokens.old, tokens.old));
    if (!bypass) largest = hn::Max(largest, tokens.old);
  }
  tokens.ref = zero;
  if (config.kl() != Kl::kNone) {
    tokens.ref = LoadTokens<kFull>(in.ref_logprobs, t, n);
    probe = hn::Add(probe, hn::Sub(tokens.ref, tokens.ref));
    largest = hn::Max(largest, tokens.ref);
  }
  if (kAny && in.advantages_per_token) {
    tokens.advantage = LoadTokens<kFull>(in.advantages, t, n);
  } else {
    tokens.advantage = M::Set(in.advantages[s]);
  }
  probe = hn::Add(probe, hn::Sub(tokens.advantage, tokens.advantage));
  tokens.weight = M::Set(1);
  if (in.token_weights != nullptr) {
    tokens.weight = LoadTokens<kFull>(in.token_weights, t, n);
    probe = hn::Add(probe, hn::Sub(tokens.weight, tokens.weight));
  }
  tokens.entropy = zero;
  if (kAny && in.entropies != nullptr) {
    tokens.entropy = LoadTokens<kFull>(in.entropies, t, n);
    probe = hn::Add(probe, hn::Sub(tokens.entropy, tokens.entropy));
  }
  const TokenMask finite = hn::Eq(probe, probe);
  tokens.ok = kReport == Report::kLater ? tokens.active : hn::And(tokens.active, finite);

  if constexpr (kReport == Report::kLater) {
    suspicion.probe = hn::Add(suspicion.probe, hn::IfThenElseZero(tokens.active, probe));
    suspicion.largest = hn::Max(suspicion.largest, hn::IfThenElseZero(tokens.active, largest));
    if (in.token_weights != nullptr) {
      suspicion.least_weight =
          hn::Min(suspicion.least_weight, hn::IfThenElseZero(tokens.active, tokens.weight));
    }
  }
  if constexpr (kReport == Report::kYes) {
    const TokenMask bad = hn::AndNot(finite, tokens.active);
    if (HWY_UNLIKELY(!hn::AllFalse(Floats(), bad))) Note(partial.non_finite, bad, t);
    const TokenMask positive =
        hn::And(tokens.ok, hn::Gt(largest, M::Set(static_cast<float>(kPositiveLogprob))));
    if (HWY_UNLIKELY(!hn::AllFalse(Floats(), positive))) Note(partial.positive, positive, t);
    if (in.token_weights != nullptr) {
      // Not (w >= 0): NaN too.
      const TokenMask wrong = hn::AndNot(hn::Ge(tokens.weight, zero), tokens.active);
      if (HWY_UNLIKELY(!hn::AllFalse(Floats(), wrong))) Note(partial.bad_weight, wrong, t);
    }
    if (kAny && HWY_UNLIKELY(!hn::AllFalse(Floats(), tokens.missing))) {
      Note(partial.missing, tokens.missing, t);
    }
  }

  tokens.logprob = hn::IfThenElseZero(tokens.ok, tokens.logprob);
  tokens.old = hn::IfThenElseZero(tokens.ok, tokens.old);
  tokens.ref = hn::IfThenElseZero(tokens.ok, tokens.ref);
  tokens.advantage = hn::IfThenElseZero(tokens.ok, tokens.advantage);
  tokens.weight = hn::IfThenElseZero(tokens.ok, tokens.weight);
  tokens.entropy = hn::IfThenElseZero(tokens.ok, tokens.entropy);
  const Vector raw = hn::Sub(tokens.logprob, tokens.old);
  const Vector bound = M::Set(static_cast<float>(config.log_clamp));
  tokens.x = hn::Min(hn::Max(raw, hn::Neg(bound)), bound);
  tokens.moves = hn::Le(hn::Abs(raw), bound);
  if (kAny && config.weighs_rollout()) {
    const Vector clamp = M::Set(static_cast<float>(kRolloutClamp));
    const Vector y = hn::Min(hn::Max(hn::Sub(tokens.old, rollout), hn::Neg(clamp)), clamp);
    tokens.rollout_y = hn::IfThenElseZero(hn::AndNot(tokens.missing, tokens.ok), y);
  }
  return tokens;
}

struct RolloutWeight {
  Vector weight;
  TokenMask out_of_bounds;
};

// c_t before batchNormalize. What belongs to a sequence is in its state.
HWY_INLINE RolloutWeight WeightOf(const Config& config, const SequenceState& state,
                                  const Tokens& tokens) {
  const Vector low = M::Set(static_cast<float>(config.correction_low));
  const Vector high = M::Set(static_cast<float>(config.correction_high));
  const Vector zero = M::Set(0), one = M::Set(1);
  RolloutWeight result{one, hn::Lt(zero, zero)};
  switch (config.rollout()) {
    case Correction::kTokenTruncate:
    case Correction::kTokenMask: {
      const Vector ratio = M::Exp(tokens.rollout_y);
      result.out_of_bounds = hn::Or(hn::Lt(ratio, low), hn::Gt(ratio, high));
      result.weight = config.rollout() == Correction::kTokenMask
                          ? hn::IfThenZeroElse(result.out_of_bounds, ratio)
                          : hn::Min(hn::Max(ratio, low), high);
      break;
    }
    case Correction::kSequenceGeoMask:
      result.weight = hn::Mul(M::Set(state.weight), M::Exp(tokens.rollout_y));
      break;
    default:
      result.weight = M::Set(state.weight);
  }
  if (state.out_of_bounds) result.out_of_bounds = hn::Eq(zero, zero);
  result.out_of_bounds = hn::AndNot(tokens.missing, hn::And(tokens.ok, result.out_of_bounds));
  result.weight = hn::IfThenElse(tokens.missing, one, result.weight);
  return result;
}

// Calls step(group, token, count, full) for every vector of a block.
template <class Step>
HWY_INLINE void ForEachVector(const Block& block, const Step& step) {
  const int64_t end = block.begin + block.tokens;
  int64_t t = block.begin;
  for (; t + kReductionLanes <= end; t += kReductionLanes) {
    for (int g = 0; g < kGroups; ++g) {
      step(g, t + g * kLanes, kLanes, std::true_type());
    }
  }
  // The trip count is fixed so that no accumulator is indexed by a variable.
  for (int g = 0; g < kGroups; ++g, t += kLanes) {
    if (t >= end) break;
    if (t + kLanes <= end) {
      step(g, t, kLanes, std::true_type());
    } else {
      step(g, t, end - t, std::false_type());
    }
  }
}

// First pass: sums of log ratios and of the correction, per block.
void SumBlock(const Call& call, int64_t index, const Logprobs& logprobs,
              bool with_sequence_weights) {
  // Copies: a store of a vector may alias anything that is not local.
  const Block block = call.blocks[index];
  const Config config = call.config;
  const Inputs in = call.in;
  const SequenceState state = call.sequences[block.sequence];
  Partial& partial = call.partials[index];
  WideSum x, y, weight, log_weight;
  x.Clear(), y.Clear(), weight.Clear(), log_weight.Clear();
  int64_t active = 0;
  bool poisoned = false;
  Suspicion unused;
  float clip[4];
  for (int i = 0; i < 4; ++i) clip[i] = static_cast<float>(config.clip[i]);
  ForEachVector(block, [&](int g, int64_t t, int64_t n, auto full) HWY_ATTR {
    const Tokens tokens = Read<full.value, Report::kNo, Extras::kAny>(
        config, in, logprobs, block.sequence, t, n, partial, unused);
    active += static_cast<int64_t>(hn::CountTrue(Floats(), tokens.active));
    poisoned = poisoned || !hn::AllFalse(Floats(), hn::AndNot(tokens.ok, tokens.active));
    x.Add(g, config.clip_rule() == Clip::kGmpo ? GmpoLog<M>(clip, tokens.x, tokens.advantage)
                                               : tokens.x);
    y.Add(g, tokens.rollout_y);
    if (!config.weighs_rollout() || !with_sequence_weights) return;
    const Vector c = WeightOf(config, state, tokens).weight;
    weight.Add(g, hn::IfThenElseZero(tokens.ok, c));
    if (SharesWeight(config)) {
      log_weight.Add(g, hn::IfThenElseZero(hn::AndNot(tokens.missing, tokens.ok), M::Set(1)));
    } else if (config.clip_rule() == Clip::kVespo) {
      log_weight.Add(g, hn::IfThenElseZero(tokens.ok, M::Log(c)));
    }
  });
  partial.sums[kActiveTokens] = static_cast<double>(active);
  partial.x = poisoned && call.propagate ? std::numeric_limits<double>::quiet_NaN() : x.Total();
  partial.y = y.Total();
  partial.weight = weight.Total();
  partial.log_weight = log_weight.Total();
}

// The KL estimate by its base, chosen once per vector: the branch is the same for all.
HWY_INLINE KlTerm<M> KlOfKind(Kl kind, const KlNumbers& numbers, Vector raw, Vector ratio,
                              TokenMask moves) {
  switch (kind) {
    case Kl::kK1:
    case Kl::kK1Plus:
      return KlOf<M, Kl::kK1>(numbers, raw, ratio, moves);
    case Kl::kAbs:
    case Kl::kAbsPlus:
      return KlOf<M, Kl::kAbs>(numbers, raw, ratio, moves);
    case Kl::kK2:
      return KlOf<M, Kl::kK2>(numbers, raw, ratio, moves);
    default:
      return KlOf<M, Kl::kK3>(numbers, raw, ratio, moves);
  }
}

// Second pass: losses, gradients, statistics. False, without any of them, when a block that is read
// without extras has a problem to report.
template <Clip kRule, Extras kExtras>
bool LossBlock(const Call& call, int64_t index, const Logprobs& logprobs) {
  const Block block = call.blocks[index];
  const Config config = call.config;
  const Inputs in = call.in;
  const Outputs out = call.out;
  const SequenceState state = call.sequences[block.sequence];
  constexpr bool kAny = kExtras == Extras::kAny;
  constexpr Report kReport = kAny ? Report::kYes : Report::kLater;
  const bool propagate = kAny && call.propagate;
  const bool weighs = kAny && config.weighs_rollout();
  const bool has_entropies = kAny && in.entropies != nullptr;
  const bool advantages_per_token = kAny && in.advantages_per_token;
  Partial& partial = call.partials[index];
  const Floats d;
  const Vector zero = M::Set(0);

  WideSum pg, kl, derivative, entropy_bonus;
  FloatSum log_ratio, kl3, ratio_sum, ratio_squares, advantage_sum, advantage_squares, weight_sum,
      entropy_sum;
  Extremes ratios, advantages, weights;
  pg.Clear(), kl.Clear(), derivative.Clear(), entropy_bonus.Clear();
  log_ratio.Clear(), kl3.Clear(), ratio_sum.Clear(), ratio_squares.Clear();
  advantage_sum.Clear(), advantage_squares.Clear(), weight_sum.Clear(), entropy_sum.Clear();
  ratios.Clear(), advantages.Clear(), weights.Clear();
  int64_t active = 0, ok_tokens = 0, high = 0, low = 0, dual = 0, out_of_bounds = 0;
  partial.non_finite = partial.positive = partial.bad_weight = partial.missing = Problem{};
  Suspicion suspicion;
  suspicion.Clear();

  float clip[4];
  for (int i = 0; i < 4; ++i) clip[i] = static_cast<float>(config.clip[i]);
  const bool own_ratio = config.level() == Level::kToken && kRule != Clip::kGmpo;
  const bool broadcasts = config.broadcasts();
  const Kl kl_kind = config.kl();
  const KlNumbers kl_numbers{
      static_cast<float>(config.kl_input_clamp), static_cast<float>(config.kl_output_clamp),
      kl_kind == Kl::kK1Plus || kl_kind == Kl::kAbsPlus || kl_kind == Kl::kK3Plus,
      config.importance()};
  const Vector kl_coef = M::Set(static_cast<float>(config.kl_coef));
  const Vector scale = M::Set(in.seq_scale[block.sequence]);
  const Vector sequence_ratio = M::Set(state.ratio);
  const bool level_none = config.level() == Level::kNone;
  const bool in_phi = kRule == Clip::kVespo && !level_none;  // VESPO has c inside phi
  const Vector phi_positive = M::Set(level_none ? 1 : state.phi_positive);
  const Vector phi_negative = M::Set(level_none ? 1 : state.phi_negative);
  const Vector poison = M::Set(state.poison);
  const Vector inverse_mean = M::Set(static_cast<float>(call.inverse_mean_weight));
  const bool drop = config.when_non_finite() == NonFinite::kDrop;
  const float entropy_scale = static_cast<float>(config.entropy_coef * config.entropy_scale);

  ForEachVector(block, [&](int g, int64_t t, int64_t n, auto full) HWY_ATTR {
    constexpr bool kFull = full.value;
    const Tokens tokens = Read<kFull, kReport, kExtras>(config, in, logprobs, block.sequence, t, n,
                                                        partial, suspicion);
    const ExpTerms exp = M::ExpAll(tokens.x);

    Vector factor = tokens.weight;
    RolloutWeight rollout{M::Set(1), hn::Lt(zero, zero)};
    if (weighs) {
      rollout = WeightOf(config, state, tokens);
      rollout.weight = hn::Mul(rollout.weight, inverse_mean);
      if (!in_phi) factor = hn::Mul(factor, rollout.weight);
    }
    const Facts<M> facts{
        own_ratio ? exp.exp : sequence_ratio,
        tokens.x,
        tokens.logprob,
        tokens.old,
        tokens.advantage,
        hn::IfThenElse(hn::Ge(tokens.advantage, zero), phi_positive, phi_negative)};
    const Surrogate<M> surrogate = SurrogateOf<M, kRule>(clip, facts);
    Vector loss = hn::Add(hn::Mul(factor, surrogate.value), poison);
    Vector gradient = hn::Mul(factor, surrogate.by_logprob);
    const Vector by_log_ratio = hn::Mul(factor, surrogate.by_log_ratio);
    if (!broadcasts && !state.held) {
      gradient = hn::Add(gradient, hn::IfThenElseZero(tokens.moves, by_log_ratio));
    }
    gradient = hn::Add(gradient, poison);

    Vector penalty = zero;
    if (kl_kind != Kl::kNone) {
      const Vector raw = hn::Sub(tokens.logprob, tokens.ref);
      KlTerm<M> term;
      if constexpr (kAny) {
        term = KlOfKind(kl_kind, kl_numbers, raw, exp.exp, tokens.moves);
      } else {
        term = KlOf<M, Kl::kK3, true>(kl_numbers, raw, exp.exp, tokens.moves);
      }
      const TokenMask applies = LoadMask<kFull>(in.kl_mask, t, n);
      penalty = hn::IfThenElseZero(applies, hn::Mul(kl_coef, term.value));
      gradient = hn::Add(gradient, hn::IfThenElseZero(applies, hn::Mul(kl_coef, term.derivative)));
    }
    gradient = hn::Mul(gradient, scale);

    // Finite values may still overflow.
    TokenMask ok = tokens.ok;
    const Vector bracket = hn::Add(loss, penalty);
    const Vector probe = hn::Add(hn::Sub(bracket, bracket), hn::Sub(gradient, gradient));
    if constexpr (kReport == Report::kLater) {
      suspicion.probe = hn::Add(suspicion.probe, hn::IfThenElseZero(ok, probe));
    } else {
      const TokenMask overflowed = hn::And(ok, hn::IsNaN(probe));
      if (HWY_UNLIKELY(!hn::AllFalse(d, overflowed)) && !propagate) {
        Note(partial.non_finite, overflowed, t);
        if (drop) ok = hn::AndNot(overflowed, ok);
      }
    }

    loss = hn::IfThenElseZero(ok, loss);
    penalty = hn::IfThenElseZero(ok, penalty);
    gradient = hn::IfThenElseZero(ok, gradient);
    Vector shown = hn::IfThenElseZero(ok, bracket);
    if (propagate) {
      const TokenMask bad = hn::AndNot(tokens.ok, tokens.active);
      const Vector nan = M::Set(std::numeric_limits<float>::quiet_NaN());
      gradient = hn::IfThenElse(bad, nan, gradient);
      shown = hn::IfThenElse(bad, nan, shown);
      loss = hn::IfThenElse(bad, nan, loss);
    }
    StoreTokens<kFull>(gradient, out.d_logprobs, t, n);
    if (kAny && out.per_token_loss != nullptr) StoreTokens<kFull>(shown, out.per_token_loss, t, n);

    pg.Add(g, loss);
    if (kl_kind != Kl::kNone) kl.Add(g, penalty);
    if (broadcasts) derivative.Add(g, hn::IfThenElseZero(ok, by_log_ratio));
    const Vector ratio = hn::IfThenElseZero(ok, exp.exp);
    log_ratio.Add(g, hn::IfThenElseZero(ok, tokens.x));
    kl3.Add(g, hn::IfThenElseZero(ok, exp.rest));
    ratio_sum.Add(g, ratio);
    ratio_squares.Add(g, hn::Mul(ratio, ratio));
    ratios.Add(ok, ratio);
    active += static_cast<int64_t>(hn::CountTrue(d, tokens.active));
    if (kAny) ok_tokens += static_cast<int64_t>(hn::CountTrue(d, ok));
    high += static_cast<int64_t>(hn::CountTrue(d, hn::And(ok, surrogate.high)));
    low += static_cast<int64_t>(hn::CountTrue(d, hn::And(ok, surrogate.low)));
    if constexpr (kRule == Clip::kDual) {
      dual += static_cast<int64_t>(hn::CountTrue(d, hn::And(ok, surrogate.dual)));
    }
    if (advantages_per_token) {
      const Vector a = hn::IfThenElseZero(ok, tokens.advantage);
      advantage_sum.Add(g, a);
      advantage_squares.Add(g, hn::Mul(a, a));
      advantages.Add(ok, a);
    }
    if (weighs) {
      weight_sum.Add(g, hn::IfThenElseZero(ok, rollout.weight));
      weights.Add(ok, rollout.weight);
      out_of_bounds += static_cast<int64_t>(hn::CountTrue(d, hn::And(ok, rollout.out_of_bounds)));
    }
    if (has_entropies) {
      const Vector entropy = hn::IfThenElseZero(ok, tokens.entropy);
      entropy_sum.Add(g, entropy);
      const TokenMask earns =
          hn::And(hn::And(ok, LoadMask<kFull>(in.kl_mask, t, n)), hn::Gt(tokens.weight, zero));
      entropy_bonus.Add(g, hn::IfThenElseZero(earns, entropy));
      if (out.d_entropies != nullptr) {
        StoreTokens<kFull>(hn::IfThenElseZero(earns, M::Set(-entropy_scale)), out.d_entropies, t,
                           n);
      }
    }
  });

  if constexpr (kReport == Report::kLater) {
    if (HWY_UNLIKELY(suspicion.Any())) return false;
    ok_tokens = active;
  }
  const auto count = static_cast<double>(ok_tokens);
  double* sums = partial.sums;
  sums[kPgLoss] = pg.Total();
  sums[kKlLoss] = kl_kind == Kl::kNone ? 0 : kl.Total();
  partial.derivative = broadcasts ? derivative.Total() : 0;
  sums[kActiveTokens] = static_cast<double>(active);
  sums[kClippedHigh] = static_cast<double>(high);
  sums[kClippedLow] = static_cast<double>(low);
  sums[kClippedDual] = static_cast<double>(dual);
  sums[kLogRatioSum] = log_ratio.Total();
  sums[kKl3Sum] = kl3.Total();
  sums[kRatioSum] = ratio_sum.Total();
  sums[kRatioSquareSum] = ratio_squares.Total();
  sums[kRatioMin] = ratios.Min();
  sums[kRatioMax] = ratios.Max();
  if (advantages_per_token) {
    sums[kAdvSum] = advantage_sum.Total();
    sums[kAdvSquareSum] = advantage_squares.Total();
    sums[kAdvMin] = advantages.Min();
    sums[kAdvMax] = advantages.Max();
  } else {
    const double a = in.advantages[block.sequence];
    sums[kAdvSum] = count == 0 ? 0 : count * a;
    sums[kAdvSquareSum] = count == 0 ? 0 : count * a * a;
    sums[kAdvMin] = count == 0 ? kInf : a;
    sums[kAdvMax] = count == 0 ? -kInf : a;
  }
  sums[kRolloutWeightSum] = weighs ? weight_sum.Total() : count;
  sums[kRolloutWeightMax] = weighs ? weights.Max() : count == 0 ? -kInf : 1;
  sums[kOutOfBounds] = static_cast<double>(out_of_bounds);
  sums[kDropped] = static_cast<double>(active - ok_tokens);
  sums[kEntropySum] = has_entropies ? entropy_sum.Total() : 0;
  sums[kEntropyBonus] = has_entropies ? entropy_bonus.Total() : 0;
  return true;
}

// Third pass: every token's share of its sequence's derivative.
void SpreadBlock(const Call& call, int64_t index, const Logprobs& logprobs) {
  const Block block = call.blocks[index];
  const Config config = call.config;
  const Inputs in = call.in;
  float* d_logprobs = call.out.d_logprobs;
  const Vector share = M::Set(static_cast<float>(call.sequences[block.sequence].derivative));
  float clip[4];
  for (int i = 0; i < 4; ++i) clip[i] = static_cast<float>(config.clip[i]);
  Partial unused;
  Suspicion none;
  ForEachVector(block, [&](int, int64_t t, int64_t n, auto full) HWY_ATTR {
    constexpr bool kFull = full.value;
    const Tokens tokens = Read<kFull, Report::kNo, Extras::kAny>(
        config, in, logprobs, block.sequence, t, n, unused, none);
    TokenMask follows = hn::And(tokens.ok, tokens.moves);
    if (config.clip_rule() == Clip::kGmpo) {
      const Vector y = GmpoLog<M>(clip, tokens.x, tokens.advantage);
      follows = hn::And(follows, hn::Eq(y, tokens.x));
    }
    const Vector own = LoadTokens<kFull>(d_logprobs, t, n);
    StoreTokens<kFull>(hn::Add(own, hn::IfThenElseZero(follows, share)), d_logprobs, t, n);
  });
}

// Log-probabilities of one block as floats; those of 16 bits are widened once, on the stack.
class BlockLogprobs {
 public:
  BlockLogprobs(const Inputs& in, const Block& block) {
    switch (in.logprobs_dtype) {
      case DType::kBF16:
        Widen(static_cast<const bfloat16*>(in.logprobs), block);
        break;
      case DType::kF16:
        Widen(static_cast<const half*>(in.logprobs), block);
        break;
      default:
        logprobs_ = {static_cast<const float*>(in.logprobs), 0};
    }
  }
  operator const Logprobs&() const { return logprobs_; }

 private:
  template <class Scalar>
  void Widen(const Scalar* from, const Block& block) {
    for (int64_t i = 0; i < block.tokens; i += kLanes) {
      const int64_t n = std::min<int64_t>(kLanes, block.tokens - i);
      StoreFromFloat(LoadFirst(from + block.begin + i, n), wide_ + i);
    }
    logprobs_ = {wide_, block.begin};
  }
  Logprobs logprobs_;
  HWY_ALIGN float wide_[kBlock];
};

void SumBlockOf(const Call& call, int64_t index, bool with_sequence_weights) {
  SumBlock(call, index, BlockLogprobs(call.in, call.blocks[index]), with_sequence_weights);
}
void SpreadBlockOf(const Call& call, int64_t index) {
  SpreadBlock(call, index, BlockLogprobs(call.in, call.blocks[index]));
}

template <Clip kRule>
void LossBlockWith(const Call& call, int64_t index, const Logprobs& logprobs) {
  if (ExtrasOf(call) == Extras::kNone && LossBlock<kRule, Extras::kNone>(call, index, logprobs)) {
    return;
  }
  LossBlock<kRule, Extras::kAny>(call, index, logprobs);
}

void LossBlockOf(const Call& call, int64_t index) {
  const BlockLogprobs logprobs(call.in, call.blocks[index]);
  if (call.config.level() == Level::kNone)
    return LossBlockWith<Clip::kVespo>(call, index, logprobs);
  switch (call.config.clip_rule()) {
    case Clip::kNone:
      return LossBlockWith<Clip::kNone>(call, index, logprobs);
    case Clip::kPpo:
      return LossBlockWith<Clip::kPpo>(call, index, logprobs);
    case Clip::kDual:
      return LossBlockWith<Clip::kDual>(call, index, logprobs);
    case Clip::kCispo:
      return LossBlockWith<Clip::kCispo>(call, index, logprobs);
    case Clip::kSapo:
      return LossBlockWith<Clip::kSapo>(call, index, logprobs);
    case Clip::kGmpo:
      return LossBlockWith<Clip::kGmpo>(call, index, logprobs);
    case Clip::kDppoTv:
      return LossBlockWith<Clip::kDppoTv>(call, index, logprobs);
    case Clip::kDppoKl:
      return LossBlockWith<Clip::kDppoKl>(call, index, logprobs);
    case Clip::kVespo:
      return LossBlockWith<Clip::kVespo>(call, index, logprobs);
    case Clip::kDro:
      return LossBlockWith<Clip::kDro>(call, index, logprobs);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::loss
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::loss {
namespace {

constexpr IsaTable<void(const Call&, int64_t, bool)> kSumBlock = VARLEN_ISA_TABLE(SumBlockOf);
constexpr IsaTable<void(const Call&, int64_t)> kLossBlock = VARLEN_ISA_TABLE(LossBlockOf);
constexpr IsaTable<void(const Call&, int64_t)> kSpreadBlock = VARLEN_ISA_TABLE(SpreadBlockOf);

// Tokens that one thread takes at a time: about 10 us of work.
constexpr int64_t kPiece = 8192;

// Ranges of blocks with about kPiece tokens each. Sizes depend on the lengths alone.
class Pieces {
 public:
  Pieces(const Block* blocks, int64_t num_blocks, int64_t num_tokens)
      : blocks_(blocks),
        num_blocks_(num_blocks),
        count_(num_blocks == 0 ? 0 : (num_tokens + kPiece - 1) / kPiece),
        num_tokens_(num_tokens) {}

  template <class Fn>
  Status ForEachBlock(const Fn& fn) const {
    if (count_ <= 1) {
      for (int64_t i = 0; i < num_blocks_; ++i) fn(i);
      return {};
    }
    return ParallelFor(count_, [&](int64_t piece, int) {
      const int64_t end = FirstFrom((piece + 1) * kPiece);
      for (int64_t i = FirstFrom(piece * kPiece); i < end; ++i) fn(i);
    });
  }

 private:
  // The first block that begins at `token` or later.
  int64_t FirstFrom(int64_t token) const {
    return std::lower_bound(blocks_, blocks_ + num_blocks_, token,
                            [](const Block& block, int64_t at) { return block.begin < at; }) -
           blocks_;
  }
  const Block* blocks_;
  int64_t num_blocks_, count_, num_tokens_;
};

int64_t CountBlocks(const Inputs& in) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < in.num_seqs; ++i) {
    blocks += (int64_t{in.cu_seqlens[i + 1]} - in.cu_seqlens[i] + kBlock - 1) / kBlock;
  }
  return blocks;
}

void ListBlocks(const Inputs& in, Block* blocks, SequenceState* sequences) {
  int64_t count = 0;
  for (int64_t i = 0; i < in.num_seqs; ++i) {
    const int64_t end = in.cu_seqlens[i + 1];
    SequenceState& state = sequences[i];
    state = {};
    state.first_block = count;
    for (int64_t begin = in.cu_seqlens[i]; begin < end; begin += kBlock) {
      blocks[count++] = {begin, static_cast<int32_t>(std::min(kBlock, end - begin)),
                         static_cast<int32_t>(i)};
    }
    state.num_blocks = count - state.first_block;
  }
}

template <class Get>
double SumOver(const Call& call, const SequenceState& state, const Get& get) {
  double sum = 0;
  for (int64_t b = 0; b < state.num_blocks; ++b) sum += get(call.partials[state.first_block + b]);
  return sum;
}

// The sums that must be known before the losses: of log ratios, of the correction.
Status SumSequences(Call& call, const Pieces& pieces) {
  const Config& config = call.config;
  const bool sequences = CorrectsSequences(config), weights = SumsWeights(config);
  const bool ratios = config.sums_ratio();
  if (!sequences && !weights && !ratios) return {};
  const auto pass = [&](bool with_weights) {
    return pieces.ForEachBlock([&](int64_t i) { kSumBlock.Get()(call, i, with_weights); });
  };
  if (Status status = pass(weights && !sequences); !status.ok()) return status;
  double tokens = 0;
  for (int64_t i = 0; i < call.in.num_seqs; ++i) {
    SequenceState& state = call.sequences[i];
    state.length = SumOver(call, state, [](const Partial& p) { return p.sums[kActiveTokens]; });
    tokens += state.length;
    if (sequences && state.length > 0) {
      SetWeight(config, SumOver(call, state, [](const Partial& p) { return p.y; }), state);
    }
  }
  if (weights && sequences) {
    if (Status status = pass(true); !status.ok()) return status;
  }
  if (config.correction_mean < 0) {
    double sum = 0;
    for (int64_t i = 0; i < call.in.num_seqs; ++i) {
      sum += SumOver(call, call.sequences[i], [](const Partial& p) { return p.weight; });
    }
    if (sum > 0) call.inverse_mean_weight = tokens / sum;
  }
  for (int64_t i = 0; i < call.in.num_seqs && ratios; ++i) {
    SequenceState& state = call.sequences[i];
    if (state.length == 0) continue;
    const double x = SumOver(call, state, [](const Partial& p) { return p.x; });
    const double log_weights = SumOver(call, state, [](const Partial& p) { return p.log_weight; });
    SetRatio(config, x, log_weights, call.inverse_mean_weight, state);
  }
  return {};
}

// A sequence's sums into those of the call; returns what it wants reported.
void FinishSequence(const Call& call, int64_t i, LengthHash& hash, Problems& problems) {
  SequenceState& state = call.sequences[i];
  const Config& config = call.config;
  double* sums = call.out.sums;
  double own[kNumSums] = {};
  double derivative = 0;
  for (int64_t b = 0; b < state.num_blocks; ++b) {
    const Partial& partial = call.partials[state.first_block + b];
    for (int s : {kPgLoss, kKlLoss, kEntropyBonus, kActiveTokens, kClippedHigh, kClippedLow,
                  kClippedDual, kLogRatioSum, kKl3Sum, kRatioSum, kRatioSquareSum, kAdvSum,
                  kAdvSquareSum, kRolloutWeightSum, kOutOfBounds, kDropped, kEntropySum}) {
      own[s] += partial.sums[s];
    }
    derivative += partial.derivative;
    for (int s : {kRatioMin, kAdvMin}) sums[s] = std::min(sums[s], partial.sums[s]);
    for (int s : {kRatioMax, kAdvMax, kRolloutWeightMax}) {
      sums[s] = std::max(sums[s], partial.sums[s]);
    }
    problems.non_finite.Merge(partial.non_finite);
    problems.positive.Merge(partial.positive);
    problems.bad_weight.Merge(partial.bad_weight);
    problems.missing.Merge(partial.missing);
  }
  const double length = own[kActiveTokens], scale = call.in.seq_scale[i];
  hash.Add(static_cast<int64_t>(length));
  if (call.out.sequence_losses != nullptr) {
    call.out.sequence_losses[i] = static_cast<float>(own[kPgLoss] + own[kKlLoss]);
  }
  if (call.out.sequence_tokens != nullptr) {
    call.out.sequence_tokens[i] = static_cast<int32_t>(length);
  }
  if (length == 0) return;
  state.derivative = scale * derivative / length;
  own[kPgLoss] *= scale;
  own[kKlLoss] *= scale;
  own[kEntropyBonus] *= config.entropy_coef * config.entropy_scale;
  own[kActiveSeqs] = 1;
  own[kInverseLengthSum] = 1 / length;
  for (int s = 0; s < kNumSums; ++s) {
    if (s == kLengthMin || s == kLengthMax || s == kRatioMin || s == kRatioMax || s == kAdvMin ||
        s == kAdvMax || s == kRolloutWeightMax) {
      continue;
    }
    sums[s] += own[s];
  }
  sums[kLengthMin] = std::min(sums[kLengthMin], length);
  sums[kLengthMax] = std::max(sums[kLengthMax], length);
}

void ClearSums(double* sums) {
  std::fill_n(sums, int{kNumSums}, 0.0);
  for (int s : {kLengthMin, kRatioMin, kAdvMin}) sums[s] = kInf;
  for (int s : {kLengthMax, kRatioMax, kAdvMax, kRolloutWeightMax}) sums[s] = -kInf;
}

Status Bad(Code code, const char* argument, const Problem& problem, const std::string& what,
           const std::string& expected) {
  Status status = Invalid(code, argument, what,
                          std::to_string(problem.count) + " of them, the first at token " +
                              std::to_string(problem.first),
                          expected);
  status.details = {{"count", static_cast<double>(problem.count)},
                    {"firstIndex", static_cast<double>(problem.first)}};
  return status;
}

Status Report(const Config& config, const Problems& problems) {
  if (problems.bad_weight.count > 0) {
    return Bad(Code::kWeight, "tokenWeights", problems.bad_weight,
               "has active tokens that are negative or NaN", "weights >= 0");
  }
  if (config.correction_missing == 1 && problems.missing.count > 0) {
    return Bad(Code::kNonFinite, "rolloutLogprobs", problems.missing,
               "is NaN at active tokens under missing: 'error'", "a log-probability");
  }
  if (config.when_non_finite() == NonFinite::kThrow && problems.non_finite.count > 0) {
    return Bad(Code::kNonFinite, "logprobs", problems.non_finite,
               "has active tokens with an input or a loss that is not finite",
               "finite values, or nonFinite: 'drop'");
  }
  if (!config.allow_positive && problems.positive.count > 0) {
    return Bad(Code::kLogprobPositive, "logprobs", problems.positive,
               "has log-probabilities above 1e-4 at active tokens",
               "values <= 0, or allowPositive");
  }
  return {};
}

}  // namespace

Status Evaluate(const Config& config, const Inputs& in, const Outputs& out) {
  const int64_t num_blocks = CountBlocks(in);
  Workspace memory(Workspace::BytesFor<Block>(num_blocks) +
                   Workspace::BytesFor<Partial>(num_blocks) +
                   Workspace::BytesFor<SequenceState>(in.num_seqs));
  Block* blocks = memory.Take<Block>(num_blocks);
  Partial* partials = memory.Take<Partial>(num_blocks);
  SequenceState* sequences = memory.Take<SequenceState>(in.num_seqs);
  ListBlocks(in, blocks, sequences);
  Call call{config,   in,        out, blocks,
            partials, sequences, 1,   config.when_non_finite() == NonFinite::kPropagate};
  if (config.correction_mean > 0) call.inverse_mean_weight = 1 / config.correction_mean;
  const Pieces pieces(blocks, num_blocks, in.num_tokens);
  if (Status status = SumSequences(call, pieces); !status.ok()) return status;
  Status status = pieces.ForEachBlock([&](int64_t i) { kLossBlock.Get()(call, i); });
  if (!status.ok()) return status;

  ClearSums(out.sums);
  LengthHash hash(in.num_seqs);
  Problems problems;
  for (int64_t i = 0; i < in.num_seqs; ++i) FinishSequence(call, i, hash, problems);
  const double loss = out.sums[kPgLoss] + out.sums[kKlLoss] - out.sums[kEntropyBonus];
  *out.loss = static_cast<float>(loss);
  if (config.broadcasts()) {
    status = pieces.ForEachBlock([&](int64_t i) { kSpreadBlock.Get()(call, i); });
    if (!status.ok()) return status;
  }
  return Judge(config, problems, hash.low(), hash.high());
}

Status Judge(const Config& config, const Problems& problems, uint32_t hash_low,
             uint32_t hash_high) {
  if (hash_low != static_cast<uint32_t>(config.hash_low) ||
      hash_high != static_cast<uint32_t>(config.hash_high)) {
    return {Code::kPlanMismatch,
            "plan",
            "was made for other lengths; got a batch with other numbers of active tokens per "
            "sequence, expected those of the plan (plan.slice for a part)",
            {}};
  }
  return Report(config, problems);
}

Status CheckCuSeqlens(const int32_t* cu, int64_t num_seqs, int64_t num_tokens) {
  if (cu[0] != 0) {
    return Invalid(Code::kCuSeqlens, "cuSeqlens", "must start at 0", std::to_string(cu[0]), "0");
  }
  for (int64_t i = 0; i < num_seqs; ++i) {
    if (cu[i + 1] < cu[i]) {
      return Invalid(Code::kCuSeqlens, "cuSeqlens", "must not decrease",
                     "cuSeqlens[" + std::to_string(i + 1) + "] = " + std::to_string(cu[i + 1]),
                     ">= " + std::to_string(cu[i]));
    }
  }
  if (cu[num_seqs] != num_tokens) {
    return Invalid(Code::kCuSeqlens, "cuSeqlens", "must end at totalTokens",
                   std::to_string(cu[num_seqs]), std::to_string(num_tokens));
  }
  return {};
}

}  // namespace varlen::loss
#endif
