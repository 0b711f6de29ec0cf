#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/loss/emulated-loss.h"
#include "doctest/doctest.h"
#include "ops/policy-loss/test-case.h"

// The kernels of the loss, run by the host emulator, against the float64 reference.
namespace varlen::policy_loss::testing {
namespace {

using loss::Clip;
using loss::Correction;
using loss::Kl;
using loss::Level;
using varlen::testing::Given;

constexpr uint64_t kSeeds = 4;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Variant RuleNamed(const std::string& name) {
  for (const Variant& v : AllRules()) {
    if (v.name == name) return v;
  }
  FAIL("no rule named " << name);
  return {};
}

struct Run {
  uint64_t seed = 0;
  int64_t most_blocks = 3;  // of a grid
};

struct DeviceResults {
  Results results;
  loss::DeviceReport report;
  int launches = 0;
};

template <class T>
simt::GlobalArray<T> Upload(const Doubles& values) {
  std::vector<T> narrow;
  for (double value : values) narrow.push_back(T(static_cast<float>(value)));
  return simt::GlobalArray<T>(narrow);
}

template <class T>
DeviceResults Emulate(const Case& c, const Run& run) {
  const loss::Config& config = c.config;
  const int64_t tokens = c.num_tokens(), seqs = c.num_seqs();
  const simt::GlobalArray<int32_t> cu(c.cu_seqlens);
  const auto logprobs = Upload<T>(c.logprobs);
  const auto old = Upload<float>(c.old_logprobs), ref = Upload<float>(c.ref_logprobs);
  const auto rollout = Upload<float>(c.rollout_logprobs);
  const simt::GlobalArray<uint8_t> mask(c.loss_mask), kl_mask(c.kl_mask);
  const auto advantages = Upload<float>(c.advantages), weights = Upload<float>(c.token_weights);
  const auto scale = Upload<float>(c.seq_scale), entropies = Upload<float>(c.entropies);
  const simt::GlobalArray<float> total(1), d_logprobs(tokens), per_token(tokens),
      sequence_losses(seqs), d_entropies(tokens);
  const simt::GlobalArray<double> sums(loss::kNumSums);
  const simt::GlobalArray<int32_t> sequence_tokens(seqs);
  const varlen::testing::EmulatedLossScratch scratch(tokens, seqs);

  // Arrays that the configuration does not read are null: reading one is a fault.
  loss::DeviceArguments p{};
  p.config = config;
  p.in.num_tokens = tokens;
  p.in.num_seqs = seqs;
  p.in.cu_seqlens = cu.data();
  p.in.logprobs = logprobs.data();
  if (config.reads_old() && config.rollout() != Correction::kBypass) {
    p.in.old_logprobs = old.data();
  }
  if (config.kl() != Kl::kNone) p.in.ref_logprobs = ref.data();
  if (config.rollout() != Correction::kNone) p.in.rollout_logprobs = rollout.data();
  p.in.loss_mask = Given(mask);
  p.in.kl_mask = Given(kl_mask);
  p.in.advantages = advantages.data();
  p.in.advantages_per_token = c.advantages_per_token;
  p.in.token_weights = Given(weights);
  p.in.seq_scale = scale.data();
  p.in.entropies = Given(entropies);
  p.out.loss = total.data();
  p.out.d_logprobs = d_logprobs.data();
  p.out.sums = sums.data();
  p.out.per_token_loss = per_token.data();
  p.out.sequence_losses = sequence_losses.data();
  p.out.sequence_tokens = sequence_tokens.data();
  if (entropies.size() > 0) p.out.d_entropies = d_entropies.data();
  scratch.LendTo(&p);

  DeviceResults out;
  const std::string fault = loss::LaunchPasses<T>(
      p, std::string(), [&]<class Kernel>(int64_t items, const loss::DeviceArguments& params) {
        ++out.launches;
        constexpr int64_t kWarps = Kernel::kThreads / simt::kWarpSize;
        const int64_t blocks =
            std::clamp<int64_t>((items + kWarps - 1) / kWarps, 1, run.most_blocks);
        return std::string(
            simt::Launch<Kernel>(blocks, Kernel::kSharedBytes, params, {.seed = run.seed})
                .message());
      });
  CHECK(fault == "");
  Results& r = out.results;
  r.loss = total[0];
  r.d_logprobs.assign(d_logprobs.begin(), d_logprobs.end());
  r.per_token_loss.assign(per_token.begin(), per_token.end());
  r.sequence_losses.assign(sequence_losses.begin(), sequence_losses.end());
  r.sums.assign(sums.begin(), sums.end());
  r.sequence_tokens.assign(sequence_tokens.begin(), sequence_tokens.end());
  out.report = scratch.report[0];
  return out;
}

Results RunEmulated(const Case& c, const Run& run = {}) { return Emulate<float>(c, run).results; }

// Within the bounds that the CPU keeps: 2e-6 of the largest value, 4e-6 for statistics.
void CheckAgainst(const Results& got, const Results& want, const Case& c) {
  constexpr double kRelative = 2e-6;
  CHECK(LargestError(got.d_logprobs, want.d_logprobs) <= kRelative * LargestOf(want.d_logprobs));
  CHECK(LargestError(got.per_token_loss, want.per_token_loss) <=
        kRelative * LargestOf(want.per_token_loss));
  double sizes = 0;
  for (int64_t i = 0; i < c.num_seqs(); ++i) {
    for (int32_t t = c.cu_seqlens[i]; t < c.cu_seqlens[i + 1]; ++t) {
      sizes += c.seq_scale[i] * std::abs(want.per_token_loss[t]);
    }
  }
  CHECK(std::abs(got.loss - want.loss) <=
        kRelative * (sizes + std::abs(want.sums[loss::kEntropyBonus])));
  for (int s = 0; s < loss::kNumSums; ++s) {
    CAPTURE(s);
    const double scale = s == loss::kPgLoss || s == loss::kKlLoss ? sizes
                         : s == loss::kLogRatioSum || s == loss::kAdvSum
                             ? want.sums[loss::kActiveTokens]
                             : std::abs(want.sums[s]);
    if (std::isinf(want.sums[s])) {
      CHECK(got.sums[s] == want.sums[s]);
    } else {
      CHECK(std::abs(got.sums[s] - want.sums[s]) <= 4e-6 * scale);
    }
  }
  CHECK(got.sequence_tokens == want.sequence_tokens);
}

bool SameAll(const Results& a, const Results& b) {
  return SameBits(a.d_logprobs, b.d_logprobs) && SameBits(a.per_token_loss, b.per_token_loss) &&
         SameBits(a.sequence_losses, b.sequence_losses) && SameBits(a.sums, b.sums) &&
         SameBits({a.loss}, {b.loss});
}

TEST_CASE("CUDA policy loss: every level, rule and KL estimate agrees with the reference") {
  uint64_t seed = 100;
  for (const Variant& v : AllVariants()) {
    Case c = Random({40, 1, 0, 17, 3}, ++seed);
    c.config = v.config;
    RoundToFloat(c);
    INFO(v.name << ", seed " << seed);
    CheckAgainst(RunEmulated(c, {.seed = seed, .most_blocks = 1 + static_cast<int>(seed % 3)}),
                 RunDouble(c), c);
  }
}

TEST_CASE("CUDA policy loss: long sequences agree under every rollout correction") {
  uint64_t seed = 900;
  for (const Variant& v : AllRules()) {
    // Corrections take turns; every one meets every mean over the rules.
    for (int turn = 0; turn < 2; ++turn) {
      ++seed;
      const int correction = static_cast<int>((seed * 3) % 7);
      double mean = seed % 3 == 0 ? 0 : seed % 3 == 1 ? -1 : 1.7;
      if (correction == 0 || correction == 6) mean = 0;
      Case c = Random({1100, 70, 1024}, seed);
      c.config = v.config;
      c.config.correction = correction;
      c.config.correction_low = correction == 5 ? 0.95 : 0.4;
      c.config.correction_high = correction == 5 ? 1.05 : 1.8;
      c.config.correction_mean = mean;
      c.config.kl_kind = static_cast<int64_t>(Kl::kK3);
      c.config.kl_coef = 0.1;
      for (size_t t = 0; t < c.logprobs.size(); ++t) {
        // Sums over a thousand tokens would leave every bound.
        if (correction == 3 || correction == 4) {
          c.rollout_logprobs[t] = c.old_logprobs[t] + 0.002 * (t % 3 == 0 ? 1 : -0.6);
        }
        if (v.config.clip_rule() == Clip::kVespo) {
          c.old_logprobs[t] = c.logprobs[t] + 0.0004 * (t % 5 == 0 ? 1 : -0.5);
        }
      }
      RoundToFloat(c);
      INFO(v.name << ", correction " << correction << ", mean " << mean << ", seed " << seed);
      CheckAgainst(RunEmulated(c, {.seed = seed}), RunDouble(c), c);
    }
  }
}

TEST_CASE("CUDA policy loss: clamps, entropies, advantages per token, 16-bit log-probabilities") {
  uint64_t seed = 2000;
  for (const Variant& v : AllRules()) {
    Case c = Random({40, 20, 9}, ++seed);
    c.config = v.config;
    c.config.log_clamp = 0.3;
    c.config.kl_kind = static_cast<int64_t>(1 + seed % 7);
    c.config.kl_coef = 0.3;
    c.config.kl_importance = static_cast<int64_t>(seed % 3);
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
    CheckAgainst(RunEmulated(c), RunDouble(c), c);
    for (double& logprob : c.logprobs) logprob = static_cast<float>(bfloat16(float(logprob)));
    CheckAgainst(Emulate<bfloat16>(c, {}).results, RunDouble(c), c);
    for (double& logprob : c.logprobs) logprob = static_cast<float>(half(float(logprob)));
    CheckAgainst(Emulate<half>(c, {}).results, RunDouble(c), c);
  }
}

Case Rich(const Variant& v, const Ints& lengths, uint64_t seed) {
  Case c = Random(lengths, seed);
  c.config = v.config;
  c.config.kl_kind = static_cast<int64_t>(Kl::kK3);
  c.config.kl_coef = 0.1;
  c.config.correction = static_cast<int64_t>(Correction::kTokenTruncate);
  c.config.correction_high = 2;
  RoundToFloat(c);
  return c;
}

TEST_CASE("CUDA policy loss: any grid and any order of warps gives the same bits") {
  uint64_t number = 40;
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    const Case c = Rich(v, {1030, 5, 0, 300}, ++number);
    const Results one = RunEmulated(c, {.seed = 0, .most_blocks = 1});
    const uint64_t seeds = number == 41 ? 2 * kSeeds : 2;
    for (uint64_t seed = 1; seed < seeds; ++seed) {
      CHECK(SameAll(RunEmulated(c, {.seed = seed, .most_blocks = 1 + 2 * static_cast<int>(seed)}),
                    one));
    }
  }
}

TEST_CASE("CUDA policy loss: a packed sequence has the bits it has alone, at any place") {
  uint64_t number = 60;
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    const Case c = Rich(v, {37, 1029, 1, 0, 64}, ++number);
    const Results packed = RunEmulated(c);
    for (int64_t i = 0; i < c.num_seqs(); ++i) {
      if (c.cu_seqlens[i] == c.cu_seqlens[i + 1]) continue;
      const Results alone = RunEmulated(Alone(c, i), {.seed = 3, .most_blocks = 2});
      const auto cut = [&](const Doubles& all) {
        return Doubles(all.begin() + c.cu_seqlens[i], all.begin() + c.cu_seqlens[i + 1]);
      };
      CHECK(SameBits(cut(packed.d_logprobs), alone.d_logprobs));
      CHECK(SameBits(cut(packed.per_token_loss), alone.per_token_loss));
      CHECK(SameBits({packed.sequence_losses[i]}, alone.sequence_losses));
    }
  }
}

TEST_CASE("CUDA policy loss: what stands at masked positions reaches no bit") {
  uint64_t number = 80;
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Rich(v, {50, 33}, ++number);
    const Results clean = RunEmulated(c);
    for (size_t t = 0; t < c.logprobs.size(); ++t) {
      if (c.loss_mask[t] != 0) continue;
      const double garbage[] = {kNaN, std::numeric_limits<double>::infinity(), 1e4, -1e30};
      for (Doubles* array :
           {&c.logprobs, &c.old_logprobs, &c.ref_logprobs, &c.rollout_logprobs, &c.token_weights}) {
        array->at(t) = garbage[(t + array->size()) % 4];
      }
    }
    const DeviceResults dirty = Emulate<float>(c, {.seed = 1});
    CHECK(SameAll(dirty.results, clean));
    for (const auto& problem : dirty.report.problems) CHECK(problem[0] == 0);
  }
}

TEST_CASE("CUDA policy loss: problems are counted as on the CPU, with the first token of each") {
  Case c = Rich(RuleNamed("token ppo"), {1200, 300}, 9);
  std::fill(c.loss_mask.begin(), c.loss_mask.end(), uint8_t{1});
  c.logprobs[1100] = kNaN;
  c.old_logprobs[1400] = std::numeric_limits<double>::infinity();
  c.ref_logprobs[7] = 0.5;
  c.token_weights[1250] = -1;
  c.rollout_logprobs[1230] = c.rollout_logprobs[1231] = kNaN;
  const loss::DeviceReport report = Emulate<float>(c, {}).report;
  const double want[4][2] = {{2, 1100}, {1, 7}, {1, 1250}, {2, 1230}};
  for (int i = 0; i < 4; ++i) {
    CAPTURE(i);
    CHECK(report.problems[i][0] == want[i][0]);
    CHECK(report.problems[i][1] == want[i][1]);
  }
  loss::LengthHash hash(2);
  for (int32_t length : c.Lengths()) hash.Add(length);
  CHECK(report.hash_low == hash.low());
  CHECK(report.hash_high == hash.high());
}

TEST_CASE("CUDA policy loss: values that are not finite are dropped or spread as on the CPU") {
  for (const Variant& v : AllRules()) {
    for (loss::NonFinite what : {loss::NonFinite::kDrop, loss::NonFinite::kPropagate}) {
      Case c = Rich(v, {40, 30}, 11);
      c.loss_mask[3] = 1;
      c.logprobs[3] = kNaN;
      c.config.non_finite = static_cast<int64_t>(what);
      INFO(v.name << ", " << static_cast<int>(what));
      const Results want = RunOp(c), got = RunEmulated(c);
      REQUIRE(want.status.ok());
      CHECK(std::isnan(got.loss) == std::isnan(want.loss));
      for (size_t t = 0; t < c.logprobs.size(); ++t) {
        CHECK(std::isnan(got.d_logprobs[t]) == std::isnan(want.d_logprobs[t]));
        if (std::isnan(want.d_logprobs[t])) continue;
        CHECK(std::abs(got.d_logprobs[t] - want.d_logprobs[t]) <= 1e-6);
      }
      CHECK(got.sums[loss::kDropped] == want.sums[loss::kDropped]);
    }
  }
}

TEST_CASE("CUDA policy loss: empty and fully masked batches are zero") {
  const Variant ppo = RuleNamed("token ppo");
  for (const Ints& lengths : {Ints{}, Ints{0}, Ints{0, 5, 0, 1025}}) {
    Case c = Rich(ppo, lengths, 5);
    std::fill(c.loss_mask.begin(), c.loss_mask.end(), uint8_t{0});
    const Results got = RunEmulated(c), want = RunOp(c);
    CHECK(got.loss == 0);
    CHECK(LargestOf(got.d_logprobs) == 0);
    CHECK(SameBits(got.sums, want.sums));
  }
}

TEST_CASE("CUDA policy loss: three launches at token level, five at sequence level") {
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Random({9}, 1);
    c.config = v.config;
    CHECK(Emulate<float>(c, {}).launches == (v.config.sums_ratio() ? 5 : 3));
  }
}

// 1024 blocks of one sequence on five CTAs, and a ratio that is the exponential of a mean over all.
TEST_CASE("CUDA policy loss: a sequence of 2^20 tokens after a short one") {
  constexpr int32_t kTokens = 1 << 20;
  Case c;
  c.config = RuleNamed("sequence ppo").config;
  c.cu_seqlens = {0, 3, 3 + kTokens};
  c.advantages = {0.5, -0.25};
  c.seq_scale = {0.5, 1e-6};
  c.logprobs.assign(kTokens + 3, -1);
  c.old_logprobs.assign(kTokens + 3, -1.125);
  c.loss_mask.assign(kTokens + 3, 0);
  for (int32_t t = 0; t < kTokens + 3; ++t) c.loss_mask[t] = t % 64 < 3;
  CheckAgainst(RunEmulated(c, {.seed = 2, .most_blocks = 5}), RunDouble(c), c);
}

TEST_CASE("CUDA policy loss: a gradient of the loss scales, in every dtype") {
  const int64_t n = 700;
  Doubles values;
  for (int64_t t = 0; t < n; ++t) values.push_back(std::sin(static_cast<double>(t)));
  const auto from = Upload<float>(values);
  const simt::GlobalArray<float> d_loss(std::vector<float>{0.5f});
  const auto check = [&]<class T>(double tolerance) {
    const simt::GlobalArray<T> to(n);
    const auto result =
        simt::Launch<loss::DeviceScale<T>>(2, 0, {d_loss.data(), from.data(), to.data(), n});
    CHECK(std::string(result.message()) == "");
    for (int64_t t = 0; t < n; ++t) {
      CHECK(std::abs(static_cast<float>(to[t]) - 0.5 * values[t]) <= tolerance);
    }
  };
  check.operator()<float>(1e-7);
  check.operator()<bfloat16>(0x1p-9);
  check.operator()<half>(0x1p-12);
}

}  // namespace
}  // namespace varlen::policy_loss::testing
