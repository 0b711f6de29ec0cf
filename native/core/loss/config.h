#pragma once

#include <cstdint>
#include <limits>

// Which policy loss: the choices of `PolicyLossConfig` (src/ops/policy-loss-config.ts, which checks
// them and has the same lists) as numbers. Every op that ends in this loss carries one.
//
//   Loss = sum_i s_i sum_{t in i, active} [ w_t c_t l(x, A_t) + coef k_t ] - coef_H sum_t h_t H_t
namespace varlen::loss {

enum class Level : uint8_t { kNone, kToken, kSequence, kSequenceToken };
enum class Clip : uint8_t {
  kNone,
  kPpo,     // low, high
  kDual,    // low, high, c
  kCispo,   // low, high: absolute bounds
  kSapo,    // tau where A > 0, tau elsewhere
  kGmpo,    // low, high: in log space
  kDppoTv,  // delta low, delta high, cap
  kDppoKl,  // delta low, delta high, cap
  kVespo,   // k, lambda where A >= 0; k, lambda elsewhere
  kDro,     // beta
};
enum class Kl : uint8_t { kNone, kK1, kAbs, kK2, kK3, kK1Plus, kAbsPlus, kK3Plus };
enum class Importance : uint8_t { kNone, kDetached, kDifferentiable };
enum class Correction : uint8_t {
  kNone,
  kTokenTruncate,
  kTokenMask,
  kSequenceTruncate,
  kSequenceMask,
  kSequenceGeoMask,
  kBypass,
};
enum class NonFinite : uint8_t { kThrow, kDrop, kPropagate };

// Bound of the log ratio between the old policy and the rollout.
inline constexpr double kRolloutClamp = 20;
// Upper bound of the mean log ratio at level sequence-token.
inline constexpr double kSequenceTokenClamp = 10;
// Bounds of VESPO's log weight: log 1e-8 and 20.
inline constexpr double kVespoLogLow = -18.420680743952367;
inline constexpr double kVespoLogHigh = 20;
// Kept out of the logarithm of DPPO's binary KL.
inline constexpr double kDppoEpsilon = 1e-8;
// A log-probability above this is an error.
inline constexpr double kPositiveLogprob = 1e-4;

struct Config {
  // Enums travel as int64_t, the one integer type of Visit.
  int64_t ratio_level = 0;
  double log_clamp = 20;
  bool on_policy = false;
  int64_t clip_kind = 0;
  double clip[4] = {0, 0, 0, 0};
  int64_t kl_kind = 0;
  double kl_coef = 0;
  double kl_input_clamp = 20;
  double kl_output_clamp = std::numeric_limits<double>::infinity();
  int64_t kl_importance = 0;
  double entropy_coef = 0;
  double entropy_scale = 0;  // h_t of a token that counts
  int64_t correction = 0;
  double correction_low = 0;
  double correction_high = 0;
  double correction_mean = 0;      // 0: do not divide; -1: by this call's mean; else by this
  int64_t correction_missing = 0;  // a NaN rollout value: 0 weighs 1, 1 fails
  int64_t non_finite = 0;
  bool allow_positive = false;
  int64_t hash_low = 0;  // of the plan's lengths, see length_hash.h
  int64_t hash_high = 0;

  constexpr Level level() const { return static_cast<Level>(ratio_level); }
  constexpr Clip clip_rule() const { return static_cast<Clip>(clip_kind); }
  constexpr Kl kl() const { return static_cast<Kl>(kl_kind); }
  constexpr Importance importance() const { return static_cast<Importance>(kl_importance); }
  constexpr Correction rollout() const { return static_cast<Correction>(correction); }
  constexpr NonFinite when_non_finite() const { return static_cast<NonFinite>(non_finite); }

  // The weights c_t of the rollout correction are in use.
  constexpr bool weighs_rollout() const {
    return rollout() != Correction::kNone && rollout() != Correction::kBypass;
  }
  // The ratio needs a sum over the sequence before any token's loss.
  constexpr bool sums_ratio() const {
    return level() == Level::kSequence || level() == Level::kSequenceToken ||
           clip_rule() == Clip::kGmpo || clip_rule() == Clip::kVespo;
  }
  // Every token's derivative is the sequence's: a third pass.
  constexpr bool broadcasts() const {
    return level() == Level::kSequence || clip_rule() == Clip::kGmpo;
  }
  // Something of the policies enters the loss, so that x_t is needed.
  constexpr bool reads_old() const {
    return !on_policy && (level() != Level::kNone || weighs_rollout());
  }

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Scalar("ratioLevel", ratio_level);
    v.Scalar("logClamp", log_clamp);
    v.Flag("onPolicy", on_policy);
    v.Scalar("clipKind", clip_kind);
    v.Scalar("clip0", clip[0]);
    v.Scalar("clip1", clip[1]);
    v.Scalar("clip2", clip[2]);
    v.Scalar("clip3", clip[3]);
    v.Scalar("klKind", kl_kind);
    v.Scalar("klCoef", kl_coef);
    v.Scalar("klInputClamp", kl_input_clamp);
    v.Scalar("klOutputClamp", kl_output_clamp);
    v.Scalar("klImportance", kl_importance);
    v.Scalar("entropyCoef", entropy_coef);
    v.Scalar("entropyScale", entropy_scale);
    v.Scalar("correction", correction);
    v.Scalar("correctionLow", correction_low);
    v.Scalar("correctionHigh", correction_high);
    v.Scalar("correctionMean", correction_mean);
    v.Scalar("correctionMissing", correction_missing);
    v.Scalar("nonFinite", non_finite);
    v.Flag("allowPositive", allow_positive);
    v.Scalar("hashLow", hash_low);
    v.Scalar("hashHigh", hash_high);
  }
};

// The sums that statistics are made of, in the order of SUM_NAMES in src/ops/policy-loss-stats.ts.
enum Sum : int {
  kPgLoss,
  kKlLoss,
  kEntropyBonus,
  kActiveTokens,
  kActiveSeqs,
  kInverseLengthSum,
  kLengthMin,
  kLengthMax,
  kClippedHigh,
  kClippedLow,
  kClippedDual,
  kLogRatioSum,
  kKl3Sum,
  kRatioSum,
  kRatioSquareSum,
  kRatioMin,
  kRatioMax,
  kAdvSum,
  kAdvSquareSum,
  kAdvMin,
  kAdvMax,
  kRolloutWeightSum,
  kRolloutWeightMax,
  kOutOfBounds,
  kDropped,
  kEntropySum,
  kNumSums,
};
// kNumSums as the name of a dimension.
inline constexpr const char* kNumSumsName = "26";
static_assert(kNumSums == 26);

}  // namespace varlen::loss
