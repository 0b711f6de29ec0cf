#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "core/isa.h"
#include "core/parallel.h"
#include "doctest/doctest.h"
#include "ops/policy-loss/test-case.h"

// Gradients against differences of the loss, the CPU against the reference, and what must not
// change a bit, each over every legal combination of level, rule and penalty.
namespace varlen::policy_loss::testing {
namespace {

using loss::Clip;
using loss::Correction;
using loss::Importance;
using loss::Kl;
using loss::Level;

// s_i of every aggregation mode, and of inverse-variance under every law of variance, from active
// lengths (zero where there is none): sequences in two groups, by turns.
std::vector<Doubles> Aggregations(const Ints& lengths) {
  constexpr double kNorm = 16, kRho = 0.4;
  double tokens = 0, seqs = 0, group_tokens[2] = {}, groups = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    tokens += lengths[i];
    seqs += lengths[i] > 0;
    group_tokens[i % 2] += lengths[i];
  }
  for (double of_group : group_tokens) groups += of_group > 0;
  std::vector<Doubles> all;
  const auto add = [&](const auto& scale_of) {
    Doubles s;
    for (size_t i = 0; i < lengths.size(); ++i) {
      s.push_back(lengths[i] > 0 ? scale_of(double(lengths[i]), i) : 0);
    }
    all.push_back(s);
  };
  add([&](double, size_t) { return 1 / tokens; });                  // token-mean
  add([&](double, size_t) { return 1.0; });                         // token-sum
  add([&](double, size_t) { return 1 / seqs; });                    // seq-mean-token-sum
  add([&](double length, size_t) { return 1 / (seqs * length); });  // seq-mean-token-mean
  add([&](double, size_t) { return 1 / (seqs * kNorm); });          // seq-mean-token-sum-norm
  add([&](double, size_t i) { return 1 / (groups * group_tokens[i % 2]); });  // group-mean
  // delta-l and inverse-variance: what v(L) is inversely proportional to.
  const auto weigh = [&](const auto& variance_of) {
    double sum = 0;
    for (double length : lengths) sum += length > 0 ? 1 / variance_of(length) : 0;
    add([&](double length, size_t) { return 1 / (kNorm * sum * variance_of(length)); });
  };
  for (double alpha : {0.0, 0.75, 1.0}) {
    weigh([&](double length) { return std::pow(length, alpha); });  // delta-l, power; 1: iid
  }
  weigh([&](double length) {  // ar1
    return length * (1 + kRho) / (1 - kRho) -
           2 * kRho * (1 - std::pow(kRho, length)) / ((1 - kRho) * (1 - kRho));
  });
  weigh([&](double length) { return length + kRho * length * (length - 1); });  // compound-symmetry
  weigh([&](double length) { return 1 + std::sin(length) * std::sin(length); });  // custom
  return all;
}

bool Direct(const loss::Config& config) {
  const Clip clip = config.clip_rule();
  return clip == Clip::kCispo || clip == Clip::kDppoTv || clip == Clip::kDppoKl ||
         clip == Clip::kVespo;
}

// The loss of log-probabilities `moved` where everything that is a constant to differentiation
// keeps its value of `c`. Its true derivative at `c` is what the op calls the gradient.
double FrozenLoss(const Case& c, const Results& at, const Doubles& moved) {
  Case surrogate = c;
  surrogate.config.kl_kind = 0;
  double total = 0;
  if (Direct(c.config)) {
    // -weight A logprob, with the weight of c: proportional to the log-probability.
    const Results own = at;
    for (int64_t i = 0; i < c.num_seqs(); ++i) {
      for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
        total += c.seq_scale[i] * own.per_token_loss[t] * moved[t] / c.logprobs[t];
      }
    }
  } else {
    if (c.config.level() == Level::kSequenceToken) {
      // A token's own ratio, from the sequence's: old = logprob - mean log ratio.
      surrogate.config.ratio_level = static_cast<int64_t>(Level::kToken);
      for (int64_t i = 0; i < c.num_seqs(); ++i) {
        double sum = 0, length = 0;
        for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
          sum += c.loss_mask[t] * (c.logprobs[t] - c.old_logprobs[t]);
          length += c.loss_mask[t];
        }
        for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
          surrogate.old_logprobs[t] = c.logprobs[t] - sum / length;
        }
      }
    }
    surrogate.logprobs = moved;
    total = RunDouble(surrogate).loss;
  }
  if (c.config.kl() == Kl::kNone) return total;
  const auto estimate = [](Kl kl, double d) {
    switch (kl) {
      case Kl::kK1:
      case Kl::kK1Plus:
        return d;
      case Kl::kAbs:
      case Kl::kAbsPlus:
        return std::abs(d);
      case Kl::kK2:
        return d * d / 2;
      default:
        return std::exp(-d) + d - 1;
    }
  };
  const bool plus =
      c.config.kl() == Kl::kK1Plus || c.config.kl() == Kl::kAbsPlus || c.config.kl() == Kl::kK3Plus;
  for (int64_t i = 0; i < c.num_seqs(); ++i) {
    for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
      if (c.loss_mask[t] == 0 || c.kl_mask[t] == 0) continue;
      const double before = c.logprobs[t] - c.ref_logprobs[t], after = moved[t] - c.ref_logprobs[t];
      const bool has_ratio = c.config.reads_old();
      const double ratio = has_ratio ? std::exp(c.logprobs[t] - c.old_logprobs[t]) : 1;
      const double moved_ratio =
          has_ratio ? std::exp(moved[t] - c.old_logprobs[t]) : std::exp(moved[t] - c.logprobs[t]);
      const double moving = estimate(plus ? Kl::kK2 : c.config.kl(), after);
      const double still = estimate(c.config.kl(), before);
      double term = moving;
      if (c.config.importance() != Importance::kNone) term = moving * ratio;
      if (c.config.importance() == Importance::kDifferentiable) term += still * moved_ratio;
      total += c.seq_scale[i] * c.config.kl_coef * term;
    }
  }
  return total;
}

TEST_CASE("Gradients of the reference are differences of its loss, for every combination") {
  constexpr double kStep = 1e-5;
  uint64_t seed = 0;
  for (const Variant& v : AllVariants()) {
    Case c = Random({4, 1, 0, 5}, ++seed);
    c.config = v.config;
    c.loss_mask[5] = 1;
    std::vector<Doubles> scales = Aggregations(c.Lengths());
    for (size_t a = 0; a < scales.size(); ++a) {
      c.seq_scale = scales[a];
      INFO(v.name << ", aggregation " << a << ", seed " << seed);
      const Results r = RunDouble(c);
      Case without_kl = c;
      without_kl.config.kl_kind = 0;
      const Results surrogate = RunDouble(without_kl);
      double largest = 0;
      for (double g : r.d_logprobs) largest = std::max(largest, std::abs(g));
      for (size_t t = 0; t < c.logprobs.size(); ++t) {
        Doubles moved = c.logprobs;
        moved[t] += kStep;
        const double above = FrozenLoss(c, surrogate, moved);
        moved[t] -= 2 * kStep;
        const double below = FrozenLoss(c, surrogate, moved);
        const double difference = (above - below) / (2 * kStep);
        CHECK(std::abs(difference - r.d_logprobs[t]) <= 1e-6 * largest + 1e-10);
      }
    }
  }
}

double SumOfSizes(const Case& c, const Doubles& per_token) {
  double sum = 0;
  for (int64_t i = 0; i < c.num_seqs(); ++i) {
    for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
      sum += c.seq_scale[i] * std::abs(per_token[t]);
    }
  }
  return sum;
}

template <class Body>
void OnEveryIsa(const Body& body) {
  const Isa before = ActiveIsa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    if (!UseIsa(isa)) continue;
    CAPTURE(NameOf(isa));
    body();
  }
  UseIsa(before);
}

// The op and the reference agree within 2e-6 of the largest value of each output.
void CheckAgainstReference(Case c, DType dtype = DType::kF32) {
  if (!c.lean) {
    Case lean = c;
    lean.lean = true;
    CheckAgainstReference(lean, dtype);
  }
  const Results got = RunOp(c, dtype);
  c.lean = false;
  const Results want = RunDouble(c);
  REQUIRE_MESSAGE(got.status.ok(), got.status.argument << " " << got.status.message);
  constexpr double kRelative = 2e-6;
  CHECK(LargestError(got.d_logprobs, want.d_logprobs) <= kRelative * LargestOf(want.d_logprobs));
  CHECK(LargestError(got.per_token_loss, want.per_token_loss) <=
        kRelative * LargestOf(want.per_token_loss));
  CHECK(std::abs(got.loss - want.loss) <= kRelative * SumOfSizes(c, want.per_token_loss) +
                                              kRelative * std::abs(want.sums[loss::kEntropyBonus]));
  for (int s = 0; s < loss::kNumSums; ++s) {
    CAPTURE(s);
    const double scale =
        s == loss::kPgLoss || s == loss::kKlLoss        ? SumOfSizes(c, want.per_token_loss)
        : s == loss::kLogRatioSum || s == loss::kAdvSum ? want.sums[loss::kActiveTokens]
                                                        : std::abs(want.sums[s]);
    if (std::isinf(want.sums[s])) {
      CHECK(got.sums[s] == want.sums[s]);
    } else {
      CHECK(std::abs(got.sums[s] - want.sums[s]) <= 4e-6 * scale);
    }
  }
}

TEST_CASE("The CPU agrees with the reference for every combination") {
  OnEveryIsa([] {
    uint64_t seed = 100;
    for (const Variant& v : AllVariants()) {
      Case c = Random({40, 1, 0, 17, 3}, ++seed);
      c.config = v.config;
      RoundToFloat(c);
      INFO(v.name << ", seed " << seed);
      CheckAgainstReference(c);
    }
  });
}

TEST_CASE("The CPU agrees with the reference on long sequences, with every correction") {
  uint64_t seed = 900;
  for (const Variant& v : AllRules()) {
    for (int correction = 0; correction <= 6; ++correction) {
      for (double mean : {0.0, -1.0, 1.7}) {
        if (mean != 0 && (correction == 0 || correction == 6)) continue;
        Case c = Random({1500, 70, 2100}, ++seed);
        c.config = v.config;
        c.config.correction = correction;
        c.config.correction_low = correction == 5 ? 0.95 : 0.4;
        c.config.correction_high = correction == 5 ? 1.05 : 1.8;
        c.config.correction_mean = mean;
        c.config.kl_kind = static_cast<int64_t>(Kl::kK3);
        c.config.kl_coef = 0.1;
        if (correction == 3 || correction == 4) {
          // Sums of y over a thousand tokens would leave every bound.
          for (size_t t = 0; t < c.logprobs.size(); ++t) {
            c.rollout_logprobs[t] = c.old_logprobs[t] + 0.002 * (t % 3 == 0 ? 1 : -0.6);
          }
        }
        if (v.config.clip_rule() == Clip::kVespo) {
          for (size_t t = 0; t < c.logprobs.size(); ++t) {
            c.old_logprobs[t] = c.logprobs[t] + 0.0004 * (t % 5 == 0 ? 1 : -0.5);
          }
        }
        RoundToFloat(c);
        INFO(v.name << ", correction " << correction << ", mean " << mean << ", seed " << seed);
        CheckAgainstReference(c);
      }
    }
  }
}

TEST_CASE("The CPU agrees with the reference per token, with clamps, entropies and 16 bits") {
  uint64_t seed = 2000;
  for (const Variant& v : AllVariants()) {
    Case c = Random({40, 20, 9}, ++seed);
    c.config = v.config;
    c.config.log_clamp = 0.3;
    c.config.kl_input_clamp = 0.5;
    c.config.kl_output_clamp = 0.2;
    if (v.config.clip_rule() != Clip::kGmpo) {
      c.advantages_per_token = true;
      c.advantages.clear();
      for (size_t t = 0; t < 69; ++t) c.advantages.push_back(std::sin(static_cast<double>(t)));
    }
    for (size_t t = 0; t < 69; ++t) c.entropies.push_back(0.1 + 0.05 * (t % 7));
    c.config.entropy_scale = 0.01;
    RoundToFloat(c);
    INFO(v.name << ", seed " << seed);
    CheckAgainstReference(c);
    for (double& logprob : c.logprobs) logprob = static_cast<float>(bfloat16(float(logprob)));
    CheckAgainstReference(c, DType::kBF16);
    for (double& logprob : c.logprobs) logprob = static_cast<float>(half(float(logprob)));
    CheckAgainstReference(c, DType::kF16);
  }
}

// Everything but the loss and the sums, which depend on what else is in the pack.
bool SameTokens(const Results& a, const Results& b) {
  return SameBits(a.d_logprobs, b.d_logprobs) && SameBits(a.per_token_loss, b.per_token_loss) &&
         SameBits(a.sequence_losses, b.sequence_losses);
}
bool SameAll(const Results& a, const Results& b) {
  return SameTokens(a, b) && SameBits(a.sums, b.sums) && SameBits({a.loss}, {b.loss});
}

// With much of what a batch may have, or with little.
Case Rich(const Variant& v, const Ints& lengths, uint64_t seed) {
  Case c = Random(lengths, seed);
  c.config = v.config;
  c.config.kl_kind = static_cast<int64_t>(Kl::kK3);
  c.config.kl_coef = 0.1;
  c.lean = v.lean;
  RoundToFloat(c);
  if (v.lean) return c;
  c.config.correction = static_cast<int64_t>(Correction::kTokenTruncate);
  c.config.correction_high = 2;
  RoundToFloat(c);
  return c;
}

TEST_CASE("One, two and seven threads give the same bits") {
  const int before = NumThreads();
  for (const Variant& v : AllRulesTwice()) {
    INFO(v.name);
    const Case c = Rich(v, {20000, 1, 0, 3000, 9000, 17, 12000}, 7);
    SetNumThreads(1);
    const Results one = RunOp(c);
    REQUIRE(one.status.ok());
    for (int threads : {2, 7}) {
      SetNumThreads(threads);
      CHECK(SameAll(RunOp(c), one));
    }
  }
  SetNumThreads(before);
}

TEST_CASE("A packed sequence has the bits it has alone, at any place in the pack") {
  for (const Variant& v : AllRulesTwice()) {
    INFO(v.name);
    const Case c = Rich(v, {1025, 3, 0, 16, 33, 2050, 15}, 8);
    const Results packed = RunOp(c);
    REQUIRE(packed.status.ok());
    for (int64_t i = 0; i < c.num_seqs(); ++i) {
      const Results alone = RunOp(Alone(c, i));
      REQUIRE(alone.status.ok());
      const auto begin = packed.d_logprobs.begin() + c.cu_seqlens[i];
      const auto end = packed.d_logprobs.begin() + c.cu_seqlens[i + 1];
      CHECK(SameBits(Doubles(begin, end), alone.d_logprobs));
      if (!v.lean) CHECK(packed.sequence_losses[i] == alone.sequence_losses[0]);
    }
  }
}

TEST_CASE("What stands at masked positions reaches no bit") {
  const double garbage[] = {std::numeric_limits<double>::quiet_NaN(),
                            std::numeric_limits<double>::infinity(),
                            -std::numeric_limits<double>::infinity(), 1e4, -1e4};
  for (const Variant& v : AllRulesTwice()) {
    Case c = Rich(v, {1100, 5, 31}, 9);
    if (!v.lean) c.entropies.assign(c.logprobs.size(), 0.5);
    const Results clean = RunOp(c);
    REQUIRE(clean.status.ok());
    for (double value : garbage) {
      INFO(v.name << ", " << value);
      Case dirty = c;
      for (size_t t = 0; t < c.logprobs.size(); ++t) {
        if (c.loss_mask[t] != 0) continue;
        for (Doubles* array : {&dirty.logprobs, &dirty.old_logprobs, &dirty.ref_logprobs,
                               &dirty.rollout_logprobs, &dirty.token_weights, &dirty.entropies}) {
          if (!array->empty()) (*array)[t] = value;
        }
      }
      const Results got = RunOp(dirty);
      CHECK(got.status.ok());
      if (got.status.ok()) CHECK(SameAll(got, clean));
    }
  }
}

TEST_CASE("Permuting sequences permutes the gradients") {
  for (const Variant& v : AllRulesTwice()) {
    INFO(v.name);
    const Case c = Rich(v, {40, 3, 17}, 10);
    Case moved;
    moved.config = c.config;
    moved.lean = c.lean;
    for (int64_t i : {2, 0, 1}) {
      const Case one = Alone(c, i);
      const auto append = [](const auto& from, auto& to) {
        to.insert(to.end(), from.begin(), from.end());
      };
      append(one.logprobs, moved.logprobs);
      append(one.old_logprobs, moved.old_logprobs);
      append(one.ref_logprobs, moved.ref_logprobs);
      append(one.rollout_logprobs, moved.rollout_logprobs);
      append(one.loss_mask, moved.loss_mask);
      append(one.kl_mask, moved.kl_mask);
      append(one.token_weights, moved.token_weights);
      append(one.advantages, moved.advantages);
      append(one.seq_scale, moved.seq_scale);
      moved.cu_seqlens.push_back(static_cast<int32_t>(moved.logprobs.size()));
    }
    const Results a = RunOp(c), b = RunOp(moved);
    const Doubles back(b.d_logprobs.begin() + 17, b.d_logprobs.end());
    CHECK(SameBits(back, Doubles(a.d_logprobs.begin(), a.d_logprobs.begin() + 43)));
  }
}

TEST_CASE("An empty or fully masked sequence changes nothing, and a batch of them is zero") {
  for (const Variant& v : AllRulesTwice()) {
    INFO(v.name);
    const Case c = Rich(v, {40, 3, 17}, 11);
    Case more = c;
    more.cu_seqlens.insert(more.cu_seqlens.begin() + 1, {40});  // an empty second sequence
    more.advantages.insert(more.advantages.begin() + 1, 5.0);
    more.seq_scale.insert(more.seq_scale.begin() + 1, 0.0);
    const Results plain = RunOp(c), got = RunOp(more);
    CHECK(SameBits(plain.d_logprobs, got.d_logprobs));
    CHECK(SameBits(plain.sums, got.sums));

    Case masked = c;
    masked.loss_mask.assign(60, 0);
    masked.seq_scale.assign(3, 0);
    for (const Case& nothing : {masked, Random({}, 1), Random({0, 0}, 1)}) {
      const Results zero = RunOp(nothing);
      REQUIRE(zero.status.ok());
      CHECK(zero.loss == 0);
      CHECK(LargestOf(zero.d_logprobs) == 0);
      CHECK(zero.sums[loss::kActiveTokens] == 0);
      CHECK(zero.sums[loss::kPgLoss] == 0);
    }
  }
}

TEST_CASE("Scaling the advantages scales the gradient, for every rule but dro") {
  for (const Variant& v : AllRules()) {
    if (v.config.clip_rule() == Clip::kDro) continue;
    INFO(v.name);
    Case c = Random({30, 11}, 12);
    c.config = v.config;
    const Results before = RunDouble(c);
    for (double& a : c.advantages) a *= 4;  // exact in float too
    const Results after = RunDouble(c);
    for (size_t t = 0; t < c.logprobs.size(); ++t) {
      CHECK(std::abs(after.d_logprobs[t] - 4 * before.d_logprobs[t]) <= 1e-6);
    }
  }
}

TEST_CASE("At ratio one the rules that clip have the same gradient, and A = 0 has none") {
  for (const Variant& v : AllRules()) {
    const Clip clip = v.config.clip_rule();
    INFO(v.name);
    Case c = Random({30, 11}, 13);
    c.config = v.config;
    c.token_weights.clear();
    c.old_logprobs = c.logprobs;
    const Results r = RunOp(c);
    REQUIRE(r.status.ok());
    // VESPO and DRO have shapes of their own; dro's is -A at ratio one too.
    if (clip != Clip::kVespo) {
      for (int64_t i = 0; i < c.num_seqs(); ++i) {
        for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
          const double want = c.loss_mask[t] * -c.advantages[i] * c.seq_scale[i];
          CHECK(std::abs(r.d_logprobs[t] - want) <= 4e-7 * std::abs(want));
        }
      }
    }
    if (clip == Clip::kDro) continue;
    c.advantages.assign(2, 0);
    CHECK(LargestOf(RunOp(c).d_logprobs) == 0);
  }
}

TEST_CASE("Complementary token weights and KL masks add up to the whole gradient") {
  for (const Variant& v : AllVariants()) {
    if (v.config.sums_ratio()) continue;
    INFO(v.name);
    Case c = Random({30, 11}, 14);
    c.config = v.config;
    c.kl_mask.assign(41, 1);
    c.token_weights.assign(41, 1);
    const Results whole = RunDouble(c);
    Doubles sum(41, 0);
    for (int pass : {0, 1}) {
      for (size_t t = 0; t < 41; ++t) {
        const bool in_pass = (c.old_logprobs[t] < -1.5) == (pass == 0);
        c.token_weights[t] = in_pass;
        c.kl_mask[t] = in_pass;
      }
      const Results part = RunDouble(c);
      for (size_t t = 0; t < 41; ++t) sum[t] += part.d_logprobs[t];
    }
    CHECK(LargestError(sum, whole.d_logprobs) <= 1e-12);
  }
}

TEST_CASE("On-policy is a ratio of one that is differentiated") {
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Random({30, 11}, 15);
    c.config = v.config;
    RoundToFloat(c);
    c.old_logprobs = c.logprobs;
    const Results explicit_old = RunOp(c);
    c.config.on_policy = true;
    const Results implied = RunOp(c);
    REQUIRE(implied.status.ok());
    CHECK(SameAll(implied, explicit_old));
  }
}

TEST_CASE("Bypass takes the rollout's log-probabilities for the old ones") {
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Random({30, 11}, 16);
    c.config = v.config;
    RoundToFloat(c);
    c.rollout_logprobs = c.old_logprobs;
    const Results named = RunOp(c);
    c.config.correction = static_cast<int64_t>(Correction::kBypass);
    c.old_logprobs.assign(41, -3);
    CHECK(SameAll(RunOp(c), named));
  }
}

}  // namespace
}  // namespace varlen::policy_loss::testing
