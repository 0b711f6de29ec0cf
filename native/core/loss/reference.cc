#include <algorithm>
#include <cmath>
#include <limits>

#include "core/loss/loss.h"

// The formulas of the policy loss as plain loops in double, written from the table of rules and
// not from rules-inl.h: what the fast versions are measured against.
namespace varlen::loss {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double Clamp(double value, double low, double high) {
  return value < low ? low : value > high ? high : value;
}
double Sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// A token's surrogate: value, and derivatives by the log ratio and by the log-probability itself.
struct Surrogate {
  double value = 0, by_log_ratio = 0, by_logprob = 0;
  bool high = false, low = false, dual = false;
};

// What a rule may look at.
struct Facts {
  double ratio;  // of the token or of the sequence
  double logprob, old_logprob;
  double advantage;
  double phi;  // VESPO's weight of the sequence
};

Surrogate Ppo(const Config& config, const Facts& f) {
  const double low = 1 - config.clip[0], high = 1 + config.clip[1], a = f.advantage;
  const double plain = -a * f.ratio, clipped = -a * Clamp(f.ratio, low, high);
  Surrogate s;
  s.value = std::max(plain, clipped);
  s.by_log_ratio = plain >= clipped ? plain : 0;
  s.high = a > 0 && f.ratio > high;
  s.low = a < 0 && f.ratio < low;
  return s;
}

Surrogate Sapo(const Config& config, const Facts& f) {
  const double tau = f.advantage > 0 ? config.clip[0] : config.clip[1];
  const double gate = Sigmoid(tau * (f.ratio - 1));
  Surrogate s;
  s.value = -f.advantage * 4 / tau * gate;
  s.by_log_ratio = -4 * f.advantage * gate * (1 - gate) * f.ratio;
  return s;
}

// -weight * A * logprob with a constant weight.
Surrogate Weighted(double weight, const Facts& f) {
  Surrogate s;
  s.value = -weight * f.advantage * f.logprob;
  s.by_logprob = -weight * f.advantage;
  return s;
}

Surrogate Cispo(const Config& config, const Facts& f) {
  Surrogate s = Weighted(Clamp(f.ratio, config.clip[0], config.clip[1]), f);
  s.high = f.ratio > config.clip[1];
  s.low = f.ratio < config.clip[0];
  return s;
}

Surrogate Dppo(const Config& config, const Facts& f) {
  const double pi = std::exp(f.logprob), old = std::exp(f.old_logprob), a = f.advantage;
  bool keep;
  if (config.clip_rule() == Clip::kDppoTv) {
    keep = a > 0 ? pi - old <= config.clip[1] : pi - old >= -config.clip[0];
  } else {
    const double divergence =
        old * (f.old_logprob - f.logprob) +
        (1 - old) * std::log((1 - old + kDppoEpsilon) / (1 - pi + kDppoEpsilon));
    keep = a > 0 ? divergence <= config.clip[1] || pi <= old
                 : divergence <= config.clip[0] || pi >= old;
  }
  Surrogate s = Weighted(keep ? std::min(f.ratio, config.clip[2]) : 0, f);
  s.high = !keep && a > 0;
  s.low = !keep && a < 0;
  return s;
}

Surrogate SurrogateOf(const Config& config, const Facts& f) {
  if (config.level() == Level::kNone) return Weighted(1, f);
  switch (config.clip_rule()) {
    case Clip::kNone: {
      Surrogate s;
      s.value = s.by_log_ratio = -f.advantage * f.ratio;
      return s;
    }
    case Clip::kPpo:
      return Ppo(config, f);
    case Clip::kDual: {
      Surrogate s = Ppo(config, f);
      const double cap = -f.advantage * config.clip[2];
      if (f.advantage < 0 && cap < s.value) {
        s.value = cap;
        s.by_log_ratio = 0;
        s.dual = true;
      }
      return s;
    }
    case Clip::kCispo:
      return Cispo(config, f);
    case Clip::kSapo:
      return Sapo(config, f);
    case Clip::kDppoTv:
    case Clip::kDppoKl:
      return Dppo(config, f);
    case Clip::kVespo:
      return Weighted(f.phi, f);
    case Clip::kDro: {
      const double distance = f.logprob - f.old_logprob;
      Surrogate s;
      s.value = -(f.logprob * f.advantage - 0.5 * config.clip[0] * distance * distance);
      s.by_logprob = -f.advantage + config.clip[0] * distance;
      return s;
    }
    case Clip::kGmpo:
      break;  // of the sequence, see Sequence::Gmpo
  }
  return {};
}

struct KlTerm {
  double value = 0, derivative = 0;
};

KlTerm KlOf(const Config& config, double logprob, double ref, double ratio, bool ratio_moves) {
  const double raw = logprob - ref, d = Clamp(raw, -config.kl_input_clamp, config.kl_input_clamp);
  KlTerm k;
  switch (config.kl()) {
    case Kl::kNone:
      return {};
    case Kl::kK1:
    case Kl::kK1Plus:
      k = {d, 1};
      break;
    case Kl::kAbs:
    case Kl::kAbsPlus:
      k = {std::abs(d), d > 0 ? 1.0 : d < 0 ? -1.0 : 0.0};
      break;
    case Kl::kK2:
      k = {d * d / 2, d};
      break;
    case Kl::kK3:
    case Kl::kK3Plus:
      k = {std::expm1(-d) + d, -std::expm1(-d)};
      break;
  }
  const bool straight_through =
      config.kl() == Kl::kK1Plus || config.kl() == Kl::kAbsPlus || config.kl() == Kl::kK3Plus;
  if (straight_through) k.derivative = d;
  bool clamped = raw != d;
  const double bounded = Clamp(k.value, -config.kl_output_clamp, config.kl_output_clamp);
  clamped = clamped || bounded != k.value;
  k.value = bounded;
  if (clamped) k.derivative = 0;
  if (config.importance() == Importance::kNone) return k;
  const double value = k.value;
  k.value *= ratio;
  k.derivative *= ratio;
  if (config.importance() == Importance::kDifferentiable && !clamped && ratio_moves) {
    k.derivative += value * ratio;
  }
  return k;
}

// One sequence of the batch.
class Sequence {
 public:
  Sequence(const Config& config, const ReferenceInputs& in, size_t index)
      : config_(config),
        in_(in),
        index_(index),
        begin_(static_cast<size_t>(in.cu_seqlens[index])),
        end_(static_cast<size_t>(in.cu_seqlens[index + 1])) {
    for (size_t t = begin_; t < end_; ++t) {
      if (!in.loss_mask.empty() && in.loss_mask[t] == 0) continue;
      ++length_;
      (Good(t) ? good_ : bad_).push_back(t);
    }
    for (size_t t : good_) {
      sum_x_ += X(t);
      sum_y_ += Y(t);
    }
    if (!bad_.empty() && config.when_non_finite() == NonFinite::kPropagate) sum_x_ = kNaN;
  }

  double length() const { return length_; }
  // Sum of the correction's weights over good tokens, before batchNormalize.
  double WeightSum() const {
    double sum = 0;
    for (size_t t : good_) sum += Weight(t);
    return sum;
  }

  void Run(double mean_weight, ReferenceOutputs& out) {
    if (length_ == 0) return;
    double sequence_derivative = 0, pg = 0, kl = 0;
    const double sequence_ratio = SequenceRatio(), vespo_log_weight = VespoLogWeight(mean_weight);
    double mean_y = 0;  // GMPO's mean of y_t
    for (size_t t : good_) mean_y += GmpoLog(t) / length_;
    if (std::isnan(sum_x_)) mean_y = kNaN;
    for (size_t t : good_) {
      const double c = config_.weighs_rollout() ? Weight(t) / mean_weight : 1;
      // VESPO has c inside phi.
      const double factor = TokenWeight(t) * (config_.clip_rule() == Clip::kVespo ? 1 : c);
      const double a = Advantage(t);
      Surrogate s;
      if (config_.clip_rule() == Clip::kGmpo) {
        s.value = s.by_log_ratio = -a * std::exp(mean_y);
        s.high = a > 0 && X(t) > config_.clip[1];
        s.low = a < 0 && X(t) < -config_.clip[0];
      } else {
        const bool own = config_.level() == Level::kToken;
        s = SurrogateOf(config_, {own ? std::exp(X(t)) : sequence_ratio, in_.logprobs[t], Old(t), a,
                                  Phi(vespo_log_weight, a)});
      }
      double derivative = factor * s.by_logprob;
      if (config_.broadcasts()) {
        sequence_derivative += factor * s.by_log_ratio;
      } else if (Moves(t)) {
        const bool held =
            config_.level() == Level::kSequenceToken && sum_x_ / length_ > kSequenceTokenClamp;
        if (!held) derivative += factor * s.by_log_ratio;
      }
      const KlTerm k = KlApplies(t) ? KlOf(config_, in_.logprobs[t], in_.ref_logprobs[t],
                                           std::exp(X(t)), Moves(t))
                                    : KlTerm{};
      derivative += config_.kl_coef * k.derivative;
      pg += factor * s.value;
      kl += config_.kl_coef * k.value;
      out.per_token_loss[t] = factor * s.value + config_.kl_coef * k.value;
      out.d_logprobs[t] = Scale() * derivative;
      Count(t, s, c, out);
    }
    if (config_.broadcasts()) {
      for (size_t t : good_) {
        const bool follows = Moves(t) && (config_.clip_rule() != Clip::kGmpo || GmpoLog(t) == X(t));
        if (follows) out.d_logprobs[t] += Scale() * sequence_derivative / length_;
      }
    }
    out.sums[kDropped] += static_cast<double>(bad_.size());
    if (!bad_.empty() && config_.when_non_finite() == NonFinite::kPropagate) {
      pg = kNaN;
      for (size_t t : bad_) out.per_token_loss[t] = out.d_logprobs[t] = kNaN;
      out.sums[kDropped] = 0;
    }
    out.sequence_losses[index_] = pg + kl;
    out.sums[kPgLoss] += Scale() * pg;
    out.sums[kKlLoss] += Scale() * kl;
    out.sums[kActiveTokens] += length_;
    out.sums[kActiveSeqs] += 1;
    out.sums[kInverseLengthSum] += 1 / length_;
    out.sums[kLengthMin] = std::min(out.sums[kLengthMin], length_);
    out.sums[kLengthMax] = std::max(out.sums[kLengthMax], length_);
  }

 private:
  double Logprob(size_t t) const { return in_.logprobs[t]; }
  double Rollout(size_t t) const {
    return in_.rollout_logprobs[t] + (in_.kept_log_mass.empty() ? 0 : in_.kept_log_mass[t]);
  }
  double Old(size_t t) const {
    if (!config_.reads_old()) return Logprob(t);
    return config_.rollout() == Correction::kBypass ? Rollout(t) : in_.old_logprobs[t];
  }
  double RawX(size_t t) const { return Logprob(t) - Old(t); }
  double X(size_t t) const { return Clamp(RawX(t), -config_.log_clamp, config_.log_clamp); }
  // The log ratio is inside its clamp.
  bool Moves(size_t t) const { return std::abs(RawX(t)) <= config_.log_clamp; }
  bool Missing(size_t t) const { return config_.weighs_rollout() && std::isnan(Rollout(t)); }
  double Y(size_t t) const {
    if (!config_.weighs_rollout() || Missing(t)) return 0;
    return Clamp(Old(t) - Rollout(t), -kRolloutClamp, kRolloutClamp);
  }
  double Advantage(size_t t) const { return in_.advantages[in_.advantages_per_token ? t : index_]; }
  double TokenWeight(size_t t) const {
    return in_.token_weights.empty() ? 1 : in_.token_weights[t];
  }
  double Scale() const { return in_.seq_scale[index_]; }
  bool InKlMask(size_t t) const { return in_.kl_mask.empty() || in_.kl_mask[t] != 0; }
  bool KlApplies(size_t t) const { return config_.kl() != Kl::kNone && InKlMask(t); }

  bool Good(size_t t) const {
    bool good = std::isfinite(Logprob(t)) && std::isfinite(Old(t)) && std::isfinite(Advantage(t)) &&
                std::isfinite(TokenWeight(t));
    if (config_.kl() != Kl::kNone) good = good && std::isfinite(in_.ref_logprobs[t]);
    if (config_.weighs_rollout()) good = good && !std::isinf(Rollout(t));
    if (!in_.entropies.empty()) good = good && std::isfinite(in_.entropies[t]);
    return good;
  }

  double SequenceRatio() const {
    const double mean = sum_x_ / length_;
    return std::exp(config_.level() == Level::kSequenceToken && mean > kSequenceTokenClamp
                        ? kSequenceTokenClamp
                        : mean);
  }

  // The ratio that the correction compares with its bounds.
  double BoundedRatio(size_t t) const {
    switch (config_.rollout()) {
      case Correction::kTokenTruncate:
      case Correction::kTokenMask:
        return std::exp(Y(t));
      case Correction::kSequenceTruncate:
      case Correction::kSequenceMask:
        return std::exp(sum_y_);
      case Correction::kSequenceGeoMask:
        return std::exp(sum_y_ / length_);
      default:
        return 1;
    }
  }
  bool OutOfBounds(size_t t) const {
    const double ratio = BoundedRatio(t);
    return !Missing(t) && config_.weighs_rollout() &&
           (ratio < config_.correction_low || ratio > config_.correction_high);
  }
  double Weight(size_t t) const {
    if (Missing(t)) return 1;
    const double ratio = BoundedRatio(t);
    switch (config_.rollout()) {
      case Correction::kTokenTruncate:
      case Correction::kSequenceTruncate:
        return Clamp(ratio, config_.correction_low, config_.correction_high);
      case Correction::kTokenMask:
      case Correction::kSequenceMask:
        return OutOfBounds(t) ? 0 : ratio;
      case Correction::kSequenceGeoMask:
        return OutOfBounds(t) ? 0 : std::exp(Y(t));
      default:
        return 1;
    }
  }

  double GmpoLog(size_t t) const {
    const double sign = Advantage(t) > 0 ? 1 : Advantage(t) < 0 ? -1 : 0;
    const double x = X(t), clamped = Clamp(x, -config_.clip[0], config_.clip[1]);
    return sign * std::min(sign * x, sign * clamped);
  }

  double VespoLogWeight(double mean_weight) const {
    double sum = sum_x_;
    if (config_.weighs_rollout()) {
      for (size_t t : good_) sum += std::log(Weight(t) / mean_weight);
    }
    return std::isnan(sum) ? sum : Clamp(sum, kVespoLogLow, kVespoLogHigh);
  }
  double Phi(double log_weight, double advantage) const {
    const double k = config_.clip[advantage >= 0 ? 0 : 2];
    const double lambda = config_.clip[advantage >= 0 ? 1 : 3];
    const double phi = std::exp(lambda + k * log_weight - lambda * std::exp(log_weight));
    return std::isinf(phi) ? 0 : phi;
  }

  void Count(size_t t, const Surrogate& s, double c, ReferenceOutputs& out) const {
    std::vector<double>& sums = out.sums;
    const double x = X(t), r = std::exp(x), a = Advantage(t);
    sums[kClippedHigh] += s.high;
    sums[kClippedLow] += s.low;
    sums[kClippedDual] += s.dual;
    sums[kLogRatioSum] += x;
    sums[kKl3Sum] += std::expm1(x) - x;
    sums[kRatioSum] += r;
    sums[kRatioSquareSum] += r * r;
    sums[kRatioMin] = std::min(sums[kRatioMin], r);
    sums[kRatioMax] = std::max(sums[kRatioMax], r);
    sums[kAdvSum] += a;
    sums[kAdvSquareSum] += a * a;
    sums[kAdvMin] = std::min(sums[kAdvMin], a);
    sums[kAdvMax] = std::max(sums[kAdvMax], a);
    sums[kRolloutWeightSum] += c;
    sums[kRolloutWeightMax] = std::max(sums[kRolloutWeightMax], c);
    sums[kOutOfBounds] += OutOfBounds(t);
    if (in_.entropies.empty()) return;
    sums[kEntropySum] += in_.entropies[t];
    if (TokenWeight(t) > 0 && InKlMask(t)) {
      sums[kEntropyBonus] += config_.entropy_coef * config_.entropy_scale * in_.entropies[t];
      out.d_entropies[t] = -config_.entropy_coef * config_.entropy_scale;
    }
  }

  const Config& config_;
  const ReferenceInputs& in_;
  size_t index_, begin_, end_;
  double length_ = 0;  // active tokens
  std::vector<size_t> good_, bad_;
  double sum_x_ = 0, sum_y_ = 0;
};

}  // namespace

ReferenceOutputs EvaluateReference(const Config& config, const ReferenceInputs& in) {
  ReferenceOutputs out;
  const size_t num_tokens = in.logprobs.size(), num_seqs = in.seq_scale.size();
  out.d_logprobs.assign(num_tokens, 0);
  out.per_token_loss.assign(num_tokens, 0);
  out.d_entropies.assign(num_tokens, 0);
  out.sequence_losses.assign(num_seqs, 0);
  out.sums.assign(kNumSums, 0);
  for (Sum minimum : {kLengthMin, kRatioMin, kAdvMin}) out.sums[minimum] = kInfinity;
  for (Sum maximum : {kLengthMax, kRatioMax, kAdvMax, kRolloutWeightMax}) {
    out.sums[maximum] = -kInfinity;
  }
  std::vector<Sequence> sequences;
  double weight_sum = 0, tokens = 0;
  for (size_t i = 0; i < num_seqs; ++i) {
    sequences.emplace_back(config, in, i);
    weight_sum += sequences.back().WeightSum();
    tokens += sequences.back().length();
  }
  const double mean = config.correction_mean > 0                     ? config.correction_mean
                      : config.correction_mean < 0 && weight_sum > 0 ? weight_sum / tokens
                                                                     : 1;
  for (Sequence& sequence : sequences) sequence.Run(mean, out);
  out.loss = out.sums[kPgLoss] + out.sums[kKlLoss] - out.sums[kEntropyBonus];
  return out;
}

std::vector<double> ReadDoubles(const Tensor& tensor) {
  if (!tensor) return {};
  std::vector<double> values(static_cast<size_t>(tensor.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    switch (tensor.dtype) {
      case DType::kF64:
        values[i] = tensor.data<double>()[i];
        break;
      case DType::kF16:
        values[i] = static_cast<float>(tensor.data<half>()[i]);
        break;
      case DType::kBF16:
        values[i] = static_cast<float>(tensor.data<bfloat16>()[i]);
        break;
      default:
        values[i] = tensor.data<float>()[i];
    }
  }
  return values;
}

}  // namespace varlen::loss
