#pragma once

#include "core/device-reduce.h"
#include "core/row-softmax-device.h"

// Weighted cross entropy (core/cross-entropy.h) on a GPU: what a row's statistics turn into, its
// gradient, and a sum over rows whose order is fixed. The op on logits puts them into the kernels
// of row-softmax-device.h, the op on hidden states into those of linear-logits-device.h. Every
// pointer is device memory.
namespace varlen {

struct DeviceCrossEntropy {
  float label_smoothing, z_loss;
  double scale;
  bool normalize;
};

struct CrossEntropySink {
  DeviceCrossEntropy options;
  double* losses;    // [num_rows]: ell
  float* per_token;  // [num_rows]: the same, like all that follow
  float* logprobs;
  float* entropies;
  double* lse;

  SIMT_FN void Write(int64_t row, bool counts, const RowFacts& s) const {
    const double smoothing = options.label_smoothing;
    const double logprob = s.target_logit - s.lse;
    // Not 0 * infinity where a word is impossible and nothing is smoothed.
    const double spread = smoothing == 0 ? 0 : smoothing * (s.lse - s.mean_logit);
    const double hit = smoothing == 1 ? 0 : (1 - smoothing) * -logprob;
    const double loss = counts ? hit + spread + options.z_loss * s.lse * s.lse : 0;
    simt::Store(losses + row, loss);
    simt::Store(per_token + row, static_cast<float>(loss));
    simt::Store(logprobs + row, counts ? static_cast<float>(logprob) : 0.0f);
    simt::Store(entropies + row, s.entropy);
    simt::Store(lse + row, s.lse);
  }
};

// factor = scale / sum w or scale, 0 where nothing counts; loss = factor * sum w ell.
struct CrossEntropyTotals {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  enum Column : int { kLoss, kWeight, kCounted, kBad, kFirstBad, kNumColumns };
  static constexpr int64_t kSharedBytes = kNumColumns * kWarps * sizeof(double);

  struct Params {
    DeviceCrossEntropy options;
    const uint8_t* mask;   // [num_rows] or null
    const float* weights;  // [num_rows] or null
    const double* losses;  // [num_rows]; null in the backward pass: only the factor
    int64_t num_rows;
    double* factor;       // [1]
    float* loss;          // [1] or null
    double* bad_weights;  // [2] or null: weights that are negative or not finite, the first row
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    double sums[kNumColumns] = {0, 0, 0, 0, FoldIdentity(Fold::kMin)};
    for (int64_t row = simt::ThreadIndex(); row < p.num_rows; row += kThreads) {
      if (!RowCounts(p.mask, p.weights, row)) continue;
      const float weight = p.weights == nullptr ? 1.0f : simt::Load(p.weights + row);
      if (p.losses != nullptr) sums[kLoss] += weight * simt::Load(p.losses + row);
      sums[kWeight] += weight;
      ++sums[kCounted];
      if (weight >= 0 && weight - weight == 0) continue;
      if (sums[kBad] == 0) sums[kFirstBad] = static_cast<double>(row);
      ++sums[kBad];
    }
    SIMT_UNROLL
    for (int c = 0; c < kNumColumns; ++c) {
      const double value = FoldLanes(FoldOf(c), sums[c]);
      if (simt::LaneIndex() == 0) simt::Store(partial + c * kWarps + simt::WarpIndex(), value);
    }
    simt::SyncThreads();
    if (simt::ThreadIndex() != 0) return;
    SIMT_UNROLL
    for (int c = 0; c < kNumColumns; ++c) {
      sums[c] = FoldFew<kWarps>(FoldOf(c), partial + c * kWarps);
    }
    const double factor = sums[kCounted] == 0   ? 0
                          : p.options.normalize ? p.options.scale / sums[kWeight]
                                                : p.options.scale;
    simt::Store(p.factor, factor);
    if (p.loss != nullptr) simt::Store(p.loss, static_cast<float>(factor * sums[kLoss]));
    if (p.bad_weights == nullptr) return;
    simt::Store(p.bad_weights, sums[kBad]);
    simt::Store(p.bad_weights + 1, sums[kFirstBad]);
  }

 private:
  static SIMT_FN Fold FoldOf(int column) { return column == kFirstBad ? Fold::kMin : Fold::kSum; }
};

// Gradients that come back; null where absent.
struct CrossEntropySource {
  DeviceCrossEntropy options;
  const uint8_t* mask;
  const float* weights;
  const double* factor;  // of CrossEntropyTotals
  const float* d_loss;   // [1]
  const float* d_per_token;
  const float* d_logprobs;
  const float* d_entropies;
  const double* lse;
  const float* entropies;
  int64_t vocab_size;

  SIMT_FN RowGradient Of(int64_t row) const {
    if (!RowCounts(mask, weights, row)) return {};
    const double weight = weights == nullptr ? 1.0f : simt::Load(weights + row);
    const double own_lse = simt::Load(lse + row), smoothing = options.label_smoothing;
    const double d_ell = At(d_loss, 0) * simt::Load(factor) * weight + At(d_per_token, row);
    const double d_logprob = At(d_logprobs, row), d_entropy = At(d_entropies, row);
    const double entropy = d_entropy == 0 ? 0 : At(entropies, row);
    // dH/dz = -p (ln p + H)
    const double scale =
        d_ell * (1 + 2 * double{options.z_loss} * own_lse) - d_logprob - d_entropy * entropy;
    return {static_cast<float>(scale), static_cast<float>(-d_entropy),
            static_cast<float>(-d_ell * smoothing / static_cast<double>(vocab_size)),
            static_cast<float>(d_logprob - d_ell * (1 - smoothing))};
  }

 private:
  static SIMT_FN double At(const float* array, int64_t i) {
    return array == nullptr ? 0.0f : simt::Load(array + i);
  }
};

}  // namespace varlen
