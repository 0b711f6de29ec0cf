#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "core/loss/config.h"

// What the tokens of a sequence share, from sums over them: once for the CPU and for a GPU thread.
namespace varlen::loss {

struct SequenceState {
  int64_t first_block = 0, num_blocks = 0;   // on the CPU
  double length = 0;                         // active tokens
  double derivative = 0;                     // by the mean log ratio, over length, times s_i
  float ratio = 1;                           // of the sequence
  float phi_positive = 1, phi_negative = 1;  // VESPO
  float weight = 1;            // of a correction per sequence; 0 or 1 for sequence-geo-mask
  double log_weight = 0;       // ln of it, not rounded
  bool held = false;           // the ratio is at its bound and does not move
  bool out_of_bounds = false;  // of the correction
  float poison = 0;            // NaN when a token spreads it, else 0
};

VARLEN_HOST_DEVICE inline bool CorrectsSequences(const Config& config) {
  return config.rollout() == Correction::kSequenceTruncate ||
         config.rollout() == Correction::kSequenceMask ||
         config.rollout() == Correction::kSequenceGeoMask;
}

// Sums of c_t or ln c_t are needed before any token's loss.
VARLEN_HOST_DEVICE inline bool SumsWeights(const Config& config) {
  return config.correction_mean < 0 || (config.clip_rule() == Clip::kVespo &&
                                        config.level() != Level::kNone && config.weighs_rollout());
}

// The corrected tokens of a sequence have the same c: instead of ln c_t they are counted.
VARLEN_HOST_DEVICE inline bool SharesWeight(const Config& config) {
  return config.rollout() == Correction::kSequenceTruncate ||
         config.rollout() == Correction::kSequenceMask;
}

// VESPO's phi for one sign of the advantage.
VARLEN_HOST_DEVICE inline float Phi(double k, double lambda, double log_weight) {
  const double phi = std::exp(lambda + k * log_weight - lambda * std::exp(log_weight));
  return std::isinf(phi) ? 0.0f : static_cast<float>(phi);
}

// The sequence's ratio or phi, from sum x_t (for GMPO sum y_t) and sum ln c_t (or see
// SharesWeight). VESPO's exponent holds exp of these sums: what is rounded before it grows, so c
// comes in double.
VARLEN_HOST_DEVICE inline void SetRatio(const Config& config, double x, double log_weights,
                                        double inverse_mean_weight, SequenceState& state) {
  if (std::isnan(x)) state.poison = std::numeric_limits<float>::quiet_NaN();
  if (config.clip_rule() == Clip::kVespo) {
    double log_weight = x;
    if (config.weighs_rollout()) {
      if (SharesWeight(config) && log_weights > 0) log_weights *= state.log_weight;
      log_weight += log_weights + state.length * std::log(inverse_mean_weight);
    }
    log_weight = std::clamp(log_weight, double{kVespoLogLow}, double{kVespoLogHigh});
    state.phi_positive = Phi(config.clip[0], config.clip[1], log_weight);
    state.phi_negative = Phi(config.clip[2], config.clip[3], log_weight);
    return;
  }
  double mean = x / state.length;
  if (config.level() == Level::kSequenceToken && mean > kSequenceTokenClamp) {
    mean = kSequenceTokenClamp;
    state.held = true;
  }
  state.ratio = static_cast<float>(std::exp(mean));
}

// c of a correction per sequence, from sum y_t.
VARLEN_HOST_DEVICE inline void SetWeight(const Config& config, double y, SequenceState& state) {
  const bool geometric = config.rollout() == Correction::kSequenceGeoMask;
  const double ratio = std::exp(geometric ? y / state.length : y);
  state.out_of_bounds = ratio < config.correction_low || ratio > config.correction_high;
  double weight = 0;
  if (config.rollout() == Correction::kSequenceTruncate) {
    weight = std::clamp(ratio, config.correction_low, config.correction_high);
  } else if (!state.out_of_bounds) {
    weight = geometric ? 1 : ratio;
  }
  state.weight = static_cast<float>(weight);
  state.log_weight = std::log(weight);
}

}  // namespace varlen::loss
