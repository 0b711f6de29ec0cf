#include <cmath>
#include <limits>

#include "doctest/doctest.h"
#include "ops/policy-loss/test-case.h"

// The worked batch E1 and literals of other projects' tests (facts: inputs and results), on the
// reference and on the CPU; then what is refused.
namespace varlen::policy_loss::testing {
namespace {

using loss::Clip;
using loss::Correction;
using loss::Kl;
using loss::Level;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

loss::Config ConfigOf(Level level, Clip clip, const Doubles& numbers = {}) {
  loss::Config config;
  config.ratio_level = static_cast<int64_t>(level);
  config.clip_kind = static_cast<int64_t>(clip);
  std::copy(numbers.begin(), numbers.end(), config.clip);
  return config;
}
const loss::Config kPpo = ConfigOf(Level::kToken, Clip::kPpo, {0.2, 0.28});

// Five sequences of 2, 3, 1, 4, 0 tokens, one token masked; grpo advantages, epsilon 1e-6.
Case E1(const loss::Config& config, const Doubles& seq_scale) {
  Case c;
  c.cu_seqlens = {0, 2, 5, 6, 10, 10};
  c.logprobs = {-.50, -1.20, -.10, -2.00, -.70, -1.50, -.30, -.90, -.05, -2.50};
  c.old_logprobs = {-.60, -1.00, -.10, -2.50, -.70, -.40, -.35, -.80, -.05, -2.00};
  c.ref_logprobs = {-.55, -1.10, -.20, -2.20, -.60, -.90, -.30, -1.00, -.10, -2.10};
  c.rollout_logprobs = {-.62, -1.00, -.10, -2.40, -.75, -.45, -.30, -.80, -.05, -2.05};
  c.loss_mask = {1, 1, 1, 1, 1, 1, 1, 0, 1, 1};
  const double pair = 0.5 / (std::sqrt(0.5) + 1e-6), other = 0.25 / (std::sqrt(0.125) + 1e-6);
  c.advantages = {pair, -pair, -other, other, 0};
  c.seq_scale = seq_scale;
  c.config = config;
  return c;
}
const Doubles kTokenMean = {1 / 9., 1 / 9., 1 / 9., 1 / 9., 0};
const Doubles kSampleMean = {.125, 1 / 12., .25, 1 / 12., 0};

using Check = std::function<void(const Results&)>;
// Both versions; `printed` is half a unit of the last printed digit.
void OnBoth(const Case& c, const std::function<void(const Results&, double printed)>& check) {
  const Results reference = RunDouble(c), fast = RunOp(c);
  REQUIRE(reference.status.ok());
  CHECK_MESSAGE(fast.status.ok(), fast.status.argument << " " << fast.status.message);
  if (!fast.status.ok()) return;
  {
    INFO("reference");
    check(reference, 0.51e-7);
  }
  INFO("CPU");
  check(fast, 2.5e-7);
}

bool Near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

// Loss with 9 decimals, gradients at t = 0, 1, 2, 3, 4, 6, 8, 9 with 7; t = 5 and 7 are 0.
void CheckRow(const Doubles& seq_scale, double loss, const Doubles& gradients) {
  OnBoth(E1(kPpo, seq_scale), [&](const Results& r, double printed) {
    CHECK(Near(r.loss, loss, printed));
    const int at[] = {0, 1, 2, 3, 4, 6, 8, 9};
    for (size_t i = 0; i < gradients.size(); ++i) {
      CHECK(Near(r.d_logprobs[at[i]], gradients[i], printed));
    }
    CHECK(r.d_logprobs[5] == 0);  // below the lower clip
    CHECK(r.d_logprobs[7] == 0);  // masked
    CHECK(r.sums[loss::kClippedLow] == 1);
    CHECK(r.sums[loss::kClippedHigh] == 0);
    CHECK(r.sequence_tokens == Ints{2, 3, 1, 3, 0});
  });
}

TEST_CASE("The policy loss gives the numbers of the worked batch under every aggregation") {
  CheckRow(kTokenMean, -0.010447844,
           {-.0868303, -.0643255, .0785673, .1295356, .0785673, -.0825954, -.0785672, -.0476534});
  CheckRow(kSampleMean, 0.029761338,
           {-.0976841, -.0723662, .0589255, .0971517, .0589255, -.0619466, -.0589254, -.0357401});
  CheckRow({.25, .25, .25, .25, 0}, -0.023507648,
           {-.1953682, -.1447323, .1767764, .2914551, .1767764, -.1858397, -.1767762, -.1072202});
  CheckRow({.03125, .03125, .03125, .03125, 0}, -0.002938456,
           {-.0244210, -.0180915, .0220971, .0364319, .0220971, -.0232300, -.0220970, -.0134025});
  CheckRow({.1, .1, .125, .125, 0}, -0.042244572,
           {-.0781473, -.0578929, .0707106, .1165820, .0707106, -.0929199, -.0883881, -.0536101});
  Doubles delta;  // alpha .75, M = 8
  double sum = 0;
  for (double length : {2, 3, 1, 3}) sum += std::pow(length, -.75);
  for (double length : {2, 3, 1, 3}) delta.push_back(std::pow(length, -.75) / sum / 8);
  delta.push_back(0);
  CheckRow(delta, 0.003244837,
           {-.0234966, -.0174067, .0156858, .0258616, .0156858, -.0164900, -.0156858, -.0095139});
  CheckRow({.5 / 2.1666666666666665 / 8, 1 / 3. / 2.1666666666666665 / 8,
            1 / 2.1666666666666665 / 8, 1 / 3. / 2.1666666666666665 / 8, 0},
           0.006868001,
           {-.0225425, -.0166999, .0135982, .0224196, .0135982, -.0142954, -.0135982, -.0082477});
}

struct Entry {
  int token;
  double gradient;
};
void CheckObjective(const Case& c, double loss, const std::vector<Entry>& entries,
                    const Check& more = {}) {
  OnBoth(c, [&](const Results& r, double printed) {
    CHECK(Near(r.loss, loss, 2 * printed));
    for (const Entry& e : entries) {
      CAPTURE(e.token);
      CHECK(Near(r.d_logprobs[e.token], e.gradient, printed));
    }
    if (more) more(r);
  });
}

TEST_CASE("The policy loss gives the numbers of the worked batch under every objective") {
  const auto e1 = [](const loss::Config& config) { return E1(config, kTokenMean); };
  CheckObjective(e1(ConfigOf(Level::kToken, Clip::kNone)), -0.047148854,
                 {{5, .0261527}, {0, -.0868303}, {3, .1295356}});
  CheckObjective(e1(ConfigOf(Level::kNone, Clip::kNone)), 0.019641677,
                 {{0, -.0785673}, {3, .0785673}, {9, -.0785672}});
  CheckObjective(e1(ConfigOf(Level::kToken, Clip::kDual, {.2, .28, 1.5})), -0.022132474,
                 {{3, 0}, {0, -.0868303}},
                 [](const Results& r) { CHECK(r.sums[loss::kClippedDual] == 1); });
  CheckObjective(e1(ConfigOf(Level::kToken, Clip::kCispo, {0, 1.28})), -0.034769039,
                 {{3, .1005662}, {5, .0261527}});
  CheckObjective(e1(ConfigOf(Level::kToken, Clip::kSapo, {1, 1.05})), -0.155909766,
                 {{0, -.0865906},
                  {1, -.0637999},
                  {3, .1156002},
                  {5, .0231898},
                  {6, -.0825412},
                  {9, -.0458556}});
  CheckObjective(e1(ConfigOf(Level::kToken, Clip::kVespo, {2, 3, 3, 2})), 0.129588063,
                 {{0, -.0855793}, {1, -.0855793}, {3, .0962081}, {5, .0110035}, {9, -.0947337}});
  for (Level level : {Level::kSequence, Level::kSequenceToken}) {
    CheckObjective(E1(ConfigOf(level, Clip::kPpo, {.2, .28}), kSampleMean), 0.029950013,
                   {{0, -.0840775}, {1, -.0840775}, {3, .0696122}, {5, 0}, {7, 0}, {9, -.0507176}});
  }
  CheckObjective(E1(ConfigOf(Level::kSequence, Clip::kGmpo, {.4, .4}), kSampleMean), 0.007025684,
                 {{0, -.0840775}, {3, .0696122}, {5, 0}, {9, -.0507176}});
}

TEST_CASE("The policy loss gives the numbers of the worked batch with penalties and weights") {
  const struct {
    Kl kl;
    double loss, gradient5;
  } penalties[] = {{Kl::kK1, -0.014892288, .0055556},
                   {Kl::kK2, -0.008795066, -.0033333},
                   {Kl::kK3, -0.008501664, -.0045673}};
  for (const auto& p : penalties) {
    Case c = E1(kPpo, kTokenMean);
    c.config.kl_kind = static_cast<int64_t>(p.kl);
    c.config.kl_coef = .05;
    CheckObjective(c, p.loss, {{5, p.gradient5}});
  }
  Case reweighted = E1(kPpo, kTokenMean);  // w = .3 exp(old) + .7
  for (double old : reweighted.old_logprobs) {
    reweighted.token_weights.push_back(.3 * std::exp(old) + .7);
  }
  CheckObjective(reweighted, -0.021664007, {{0, -.0750773}, {3, .0938648}});
  for (const bool low : {true, false}) {
    Case pass = E1(kPpo, kTokenMean);
    for (double old : pass.old_logprobs) pass.token_weights.push_back((std::exp(old) < .5) == low);
    CheckObjective(pass, low ? 0.096124016 : -0.106571860, {{low ? 0 : 1, 0}});
  }
  Case corrected = E1(kPpo, kTokenMean);
  corrected.config.correction = static_cast<int64_t>(Correction::kTokenTruncate);
  corrected.config.correction_high = 2;
  CheckObjective(corrected, -0.015693077, {}, [](const Results& r) {
    CHECK(Near(r.sums[loss::kRolloutWeightSum],
               1.020201 + 1 + 1 + .904837 + 1.051271 + 1.051271 + .951229 + 1 + 1.051271, 3e-6));
    CHECK(Near(r.sums[loss::kRolloutWeightMax], 1.051271, 1e-6));
  });
}

TEST_CASE("The policy loss counts what the worked batch says") {
  OnBoth(E1(kPpo, kTokenMean), [](const Results& r, double) {
    CHECK(Near(-r.sums[loss::kLogRatioSum] / 9, 0.1277778, 1e-7));
    CHECK(Near(r.sums[loss::kKl3Sum] / 9, 0.0792551, 1e-7));
    CHECK(Near(r.sums[loss::kRatioMax], 1.6487213, 2e-7));
    CHECK(Near(r.sums[loss::kRatioMin], 0.3328711, 1e-7));
    const double ratio = r.sums[loss::kRatioSum];
    CHECK(Near(ratio * ratio / (9 * r.sums[loss::kRatioSquareSum]), 0.8862201, 1e-7));
    CHECK(Near(4 / r.sums[loss::kInverseLengthSum], 1.8461538, 1e-7));
    CHECK(r.sums[loss::kActiveTokens] == 9);
    CHECK(r.sums[loss::kActiveSeqs] == 4);
    CHECK(r.sums[loss::kLengthMin] == 1);
    CHECK(r.sums[loss::kLengthMax] == 3);
  });
}

// One sequence whose every token has a scale of 1 / n.
Case OneRow(const loss::Config& config, const Doubles& advantages, const Doubles& logprobs,
            const Doubles& old) {
  Case c;
  const auto n = static_cast<int32_t>(logprobs.size());
  c.cu_seqlens = {0, n};
  c.logprobs = logprobs;
  c.old_logprobs = old;
  c.advantages = advantages;
  c.advantages_per_token = true;
  c.seq_scale = {1. / n};
  c.config = config;
  return c;
}
Case FromRatios(const loss::Config& config, const Doubles& advantages, const Doubles& ratios) {
  Doubles logprobs, old;
  for (double ratio : ratios) {
    old.push_back(-4);
    logprobs.push_back(-4 + std::log(ratio));
  }
  return OneRow(config, advantages, logprobs, old);
}
void CheckTokens(const Case& c, const Doubles& per_token, double mean, double tolerance = 1e-6) {
  OnBoth(c, [&](const Results& r, double) {
    for (size_t t = 0; t < per_token.size(); ++t) {
      CHECK(Near(r.per_token_loss[t], per_token[t], 4 * tolerance));
    }
    CHECK(Near(r.loss, mean, tolerance));
  });
}

TEST_CASE("The policy loss gives the literals of NeMo-RL and slime") {
  const loss::Config ppo = ConfigOf(Level::kToken, Clip::kPpo, {.2, .2});
  Case c = FromRatios(ppo, {1, -1, 2}, {.5, 1, 1.5});
  CheckTokens(c, {-.5, 1, -2.4}, -.633333333);

  // Truncated importance sampling; old is -1 there.
  c = OneRow(ppo, {1, -1, 2}, {-1 + std::log(.5), -1, -1 + std::log(1.5)}, {-1, -1, -1});
  c.rollout_logprobs = {-.5, -1.5, -.8};
  c.config.correction = static_cast<int64_t>(Correction::kTokenTruncate);
  c.config.correction_high = 100;
  CheckTokens(c, {-.5 * .6065, 1.6487, -2.4 * .8187}, -.2065, 5.1e-5);
  c.config.correction_high = .8;
  CheckTokens(c, {-.3033, .8, -1.92}, -.4744, 5.1e-5);
  c.config.correction = static_cast<int64_t>(Correction::kSequenceTruncate);
  c.config.correction_high = 100;
  CheckTokens(c, {}, -.6333333 * std::exp(-.2), 5.1e-5);

  const loss::Config gspo = ConfigOf(Level::kSequence, Clip::kPpo, {.2, .2});
  CheckTokens(FromRatios(gspo, {1, -1, 2}, {.5, 1, 1.5}), {-.9086, .9086, -1.8171}, -.6057, 5.1e-5);

  const loss::Config dual = ConfigOf(Level::kToken, Clip::kDual, {.2, .2, 3});
  CheckTokens(FromRatios(dual, {1, -1, -4}, {.5, 1, 10}), {-.5, 1, 12}, 4.1666667, 2e-6);
  const loss::Config slime = ConfigOf(Level::kToken, Clip::kDual, {.2, .2, 1.5});
  CheckTokens(FromRatios(slime, {2, -2, 2}, {2, 2, .5}), {-2.4, 3, -1}, -.4 / 3, 2e-6);
}

TEST_CASE("KL estimates give the literals of NeMo-RL, clamped and weighted") {
  const auto penalty = [](Kl kl) {
    Case c = OneRow(ConfigOf(Level::kToken, Clip::kNone), {0, 0, 0}, {-1, -1, -1}, {-1, -1, -1});
    c.ref_logprobs = {0, -15, -30};
    c.config.kl_kind = static_cast<int64_t>(kl);
    c.config.kl_coef = 1;
    c.config.kl_input_clamp = 100;
    return c;
  };
  CheckTokens(penalty(Kl::kK1), {-1, 14, 29}, 14);
  CheckTokens(penalty(Kl::kK2), {.5, 98, 420.5}, 173, 2e-5);
  CheckTokens(penalty(Kl::kK3), {.7182818, 13.0000008, 28}, 13.9060942, 2e-6);
  Case c = penalty(Kl::kK3);
  c.config.kl_output_clamp = 10;
  CheckTokens(c, {.7182818, 10, 10}, 6.9060939);

  Case clamped = OneRow(ConfigOf(Level::kToken, Clip::kNone), {0}, {-3}, {-3});
  clamped.ref_logprobs = {0};
  clamped.config.kl_kind = static_cast<int64_t>(Kl::kK3);
  clamped.config.kl_coef = 1;
  clamped.config.kl_input_clamp = 2;
  clamped.config.kl_importance = static_cast<int64_t>(loss::Importance::kDifferentiable);
  CheckObjective(clamped, 4.389056 + 9.9e-8, {{0, 0}});
  clamped.logprobs = clamped.old_logprobs = {-1};
  CheckObjective(clamped, 0.7182818, {{0, -1}});
}

TEST_CASE("Bounds of the rollout correction give the literals of NeMo-RL") {
  Case c = OneRow(ConfigOf(Level::kNone, Clip::kNone), {1, 1, 1}, {-5, -5, -5}, {-5, -5, -5});
  c.rollout_logprobs = {-5 - std::log(.1), -5, -5 - std::log(3)};
  c.config.correction = static_cast<int64_t>(Correction::kTokenTruncate);
  c.config.correction_high = 2;
  CheckTokens(c, {.5, 5, 10}, 15.5 / 3, 2e-6);
  OnBoth(c, [](const Results& r, double) { CHECK(r.sums[loss::kOutOfBounds] == 1); });
  c.config.correction_low = .5;
  CheckTokens(c, {2.5, 5, 10}, 17.5 / 3, 2e-6);
  OnBoth(c, [](const Results& r, double) { CHECK(r.sums[loss::kOutOfBounds] == 2); });
}

TEST_CASE("A sequence's ratio is the exponential of a sum, however long the sequence") {
  // 4096 tokens whose ratios' product overflows float and double.
  Case c = OneRow(ConfigOf(Level::kSequence, Clip::kNone), Doubles(4096, 1.), Doubles(4096, -1.),
                  Doubles(4096, -2.));
  CheckTokens(c, {}, -std::exp(1.), 1e-6);
}

// --- refusals -----------------------------------------------------------------------------------

// With all outputs; without those that are optional the same is found and the same comes out.
Results RunBoth(const Case& c) {
  Case lean = c;
  lean.lean = true;
  const Results r = RunOp(c), other = RunOp(lean);
  CHECK(other.status.code == r.status.code);
  CHECK(other.status.argument == r.status.argument);
  CHECK(other.status.details == r.status.details);
  CHECK(LargestError(other.sums, r.sums) <= 1e-5 * LargestOf(r.sums));
  CHECK(LargestError(other.d_logprobs, r.d_logprobs) <= 1e-6 * LargestOf(r.d_logprobs));
  return r;
}
Code CodeOf(const Case& c) { return RunBoth(c).status.code; }

TEST_CASE("Values that are not finite are reported with their number and place") {
  Case c = Random({5, 4, 7}, 1);
  c.config = kPpo;
  c.loss_mask.assign(16, 1);
  c.logprobs[6] = kNaN;
  c.old_logprobs[3] = -std::numeric_limits<double>::infinity();
  const Results r = RunBoth(c);
  REQUIRE(r.status.code == Code::kNonFinite);
  CHECK(r.status.details[0].second == 2);
  CHECK(r.status.details[1].second == 3);
  c.loss_mask[3] = c.loss_mask[6] = 0;
  CHECK(RunBoth(c).status.ok());
}

TEST_CASE("A dropped token counts for nothing and leaves the denominators") {
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Random({5, 9}, 2);
    c.config = v.config;
    c.config.non_finite = static_cast<int64_t>(loss::NonFinite::kDrop);
    c.loss_mask.assign(14, 1);
    c.advantages.assign({0.5, -0.25});
    RoundToFloat(c);
    c.logprobs[2] = kNaN;
    const Results fast = RunBoth(c), reference = RunDouble(c);
    REQUIRE(fast.status.ok());
    CHECK(fast.sums[loss::kDropped] == 1);
    CHECK(fast.sums[loss::kActiveTokens] == 14);
    CHECK(fast.d_logprobs[2] == 0);
    CHECK(fast.per_token_loss[2] == 0);
    for (size_t t = 0; t < 14; ++t) {
      CHECK(Near(fast.d_logprobs[t], reference.d_logprobs[t], 1e-6));
    }
    CHECK(Near(fast.loss, reference.loss, 1e-6));
  }
}

TEST_CASE("A token that spreads reaches its own gradient, its sequence's ratio and the loss") {
  for (const Variant& v : AllRules()) {
    INFO(v.name);
    Case c = Random({5, 9}, 2);
    c.config = v.config;
    c.config.non_finite = static_cast<int64_t>(loss::NonFinite::kPropagate);
    c.loss_mask.assign(14, 1);
    c.logprobs[2] = kNaN;
    const Results r = RunOp(c);
    REQUIRE(r.status.ok());
    CHECK(std::isnan(r.loss));
    CHECK(std::isnan(r.d_logprobs[2]));
    const bool whole = v.config.sums_ratio() && v.config.clip_rule() != Clip::kVespo;
    if (whole) CHECK(std::isnan(r.d_logprobs[4]));
    for (size_t t = 5; t < 14; ++t) CHECK(std::isfinite(r.d_logprobs[t]));
  }
}

TEST_CASE("A loss that overflows is not finite either") {
  Case c = FromRatios(ConfigOf(Level::kToken, Clip::kNone), {1e38, 1}, {10, 1});
  CHECK(CodeOf(c) == Code::kNonFinite);
  c.config.non_finite = static_cast<int64_t>(loss::NonFinite::kDrop);
  const Results r = RunBoth(c);
  CHECK(r.sums[loss::kDropped] == 1);
  CHECK(Near(r.loss, -.5, 1e-6));
}

TEST_CASE("Log-probabilities above 1e-4 are refused unless they are allowed") {
  for (int which = 0; which < 3; ++which) {
    Case c = Random({5, 4}, 3);
    c.config = kPpo;
    c.config.kl_kind = static_cast<int64_t>(Kl::kK3);
    c.config.kl_coef = 0.1;
    c.loss_mask.assign(9, 1);
    Doubles* const arrays[] = {&c.logprobs, &c.old_logprobs, &c.ref_logprobs};
    (*arrays[which])[4] = 1e-5;
    CHECK(CodeOf(c) == Code::kOk);
    (*arrays[which])[4] = 2e-4;
    const Results r = RunBoth(c);
    REQUIRE(r.status.code == Code::kLogprobPositive);
    CHECK(r.status.details[1].second == 4);
    c.loss_mask[4] = 0;
    CHECK(CodeOf(c) == Code::kOk);
    c.loss_mask[4] = 1;
    c.config.allow_positive = true;
    CHECK(CodeOf(c) == Code::kOk);
  }
}

TEST_CASE("Token weights that are negative or NaN are refused at active tokens") {
  for (double bad : {-0.5, kNaN}) {
    Case c = Random({5, 4}, 4);
    c.config = kPpo;
    c.loss_mask.assign(9, 1);
    c.token_weights[7] = bad;
    CHECK(CodeOf(c) == Code::kWeight);
    c.loss_mask[7] = 0;
    CHECK(CodeOf(c) == Code::kOk);
  }
}

TEST_CASE("A plan of other lengths is refused, of other numbers of sequences at once") {
  Case c = Random({5, 4}, 5);
  c.config = kPpo;
  c.check_plan = true;
  CHECK(CodeOf(c) == Code::kPlanMismatch);
  c.seq_scale.push_back(1);
  CHECK(CodeOf(c) == Code::kPlanMismatch);
}

TEST_CASE("A rollout log-probability that is missing weighs one, or fails where that is asked") {
  Case c = Random({5, 4}, 6);
  c.config = kPpo;
  c.loss_mask.assign(9, 1);
  c.config.correction = static_cast<int64_t>(Correction::kTokenMask);
  c.config.correction_low = 0.5;
  c.config.correction_high = 0.6;
  RoundToFloat(c);
  c.rollout_logprobs[1] = kNaN;
  OnBoth(c, [](const Results& r, double) { CHECK(r.sums[loss::kRolloutWeightMax] == 1); });
  c.config.correction_missing = 1;
  CHECK(CodeOf(c) == Code::kNonFinite);
}

TEST_CASE("Inputs that the configuration needs, and those that it would ignore, are named") {
  Case c = Random({5, 4}, 7);
  c.config = kPpo;
  c.old_logprobs.clear();
  CHECK(CodeOf(c) == Code::kMissingInput);
  c.config.on_policy = true;
  CHECK(CodeOf(c) == Code::kOk);
  c.config.kl_kind = 1;
  c.ref_logprobs.clear();
  CHECK(CodeOf(c) == Code::kMissingInput);
  c.config.kl_kind = 0;
  c.config.correction = 1;
  c.rollout_logprobs.clear();
  CHECK(CodeOf(c) == Code::kMissingInput);
}

TEST_CASE("Offsets and lengths that do not fit are refused") {
  const auto with = [](const Ints& cu, const Doubles& advantages) {
    Case c = Random({5, 4}, 8);
    c.config = kPpo;
    c.cu_seqlens = cu;
    c.advantages = advantages;
    return RunOp(c).status.code;
  };
  CHECK(with({0, 5, 9}, {1, 2}) == Code::kOk);
  CHECK(with({1, 5, 9}, {1, 2}) == Code::kCuSeqlens);
  CHECK(with({0, 5, 8}, {1, 2}) == Code::kCuSeqlens);
  CHECK(with({0, 10, 9}, {1, 2}) == Code::kCuSeqlens);
  CHECK(with({0, 5, 9}, {1, 2, 3}) == Code::kShape);
  Case c = Random({5, 4}, 8);
  c.token_weights.pop_back();
  CHECK(CodeOf(c) == Code::kShape);
}

}  // namespace
}  // namespace varlen::policy_loss::testing
