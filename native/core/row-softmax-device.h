#pragma once

#include <cmath>
#include <cstdint>

#include "core/chunks-device.h"
#include "core/device-reduce.h"
#include "core/simt/simt.h"

// The softmax of rows of logits on a GPU, and its gradient: row-softmax-inl.h as kernels. A block
// takes a row; thread j takes chunks of eight words j, j + 256, ..., threads are added by a fixed
// tree: a row's bits depend on that row alone. Each logit is read once per pass.
namespace varlen {

// From a raw dot product to a logit, and back for gradients: z = cap(scale * u) / temperature,
// where cap(x) = softcap tanh(x / softcap).
struct DeviceActivation {
  float temperature = 1, softcap = 0, scale = 1;

  SIMT_FN float Forward(float u) const {
    if (softcap == 0) return u * (scale / temperature);
    return simt::Tanh(u * (scale / softcap)) * (softcap / temperature);
  }
  // du from dz at the logit z.
  SIMT_FN float Backward(float dz, float z) const {
    const float scaled = dz * (scale / temperature);
    if (softcap == 0) return scaled;
    const float tanh = z * (temperature / softcap);
    return scaled * (1 - tanh * tanh);
  }
};

// Logits [num_rows, vocab_size], rows `stride` apart; every pointer is device memory. No row is
// read whose mask or weight is 0.
template <class T>
struct DeviceLogits {
  const T* logits;
  int64_t stride;
  const uint8_t* mask;     // [num_rows] or null
  const float* weights;    // [num_rows] or null
  const int32_t* targets;  // [num_rows]
  int64_t num_rows, vocab_size;
  DeviceActivation activation;
  bool vector_access;  // rows begin at multiples of 16 bytes
};

// The mask is asked first: where it is 0, neither weight nor target is looked at.
SIMT_FN bool RowCounts(const uint8_t* mask, const float* weights, int64_t row) {
  if (mask != nullptr && simt::Load(mask + row) == 0) return false;
  return weights == nullptr || simt::Load(weights + row) != 0;
}

namespace internal {

inline constexpr float kLog2e = 1.4426950408889634f;

}  // namespace internal

// What one pass over a row finds. A target outside the vocabulary has the logit NaN
// (DeviceTargetCheck says where). A row whose logits are all -infinity has no distribution: NaN.
struct RowFacts {
  double lse;          // ln sum e^z
  float target_logit;  // z[target]
  float entropy;       // -sum p ln p
  float sum_squares;   // sum p^2
  float mean_logit;    // of z
};

// Sums over words relative to a maximum (Milakov and Gimelshein 2018).
template <class Real>
struct RowSums {
  float max = -simt::Infinity();
  Real exp = 0;      // sum e^(z - max)
  Real shifted = 0;  // sum e^(z - max) (z - max)
  Real squares = 0;  // sum e^(2 (z - max))
  Real logits = 0;   // sum z

  static SIMT_FN float ShiftOf(float max) { return max == -simt::Infinity() ? 0.0f : max; }

  // e^(z - m') = f e^(z - m), and f e^(z - m) (z - m') = f (e^(z - m) (z - m) + (m - m') e^(z -
  // m)).
  SIMT_FN void MoveTo(float new_max) {
    if (exp > 0) {
      const Real step = Real{max} - Real{new_max}, factor = std::exp(step);
      shifted = factor * (shifted + step * exp);
      exp *= factor;
      squares *= factor * factor;
    }
    max = new_max;
  }
  SIMT_FN void AddWord(float z) {
    const float x = z - ShiftOf(max), e = simt::Exp2(x * internal::kLog2e);
    exp += e;
    // Not e * x alone: 0 * -infinity is no number, and an impossible token adds nothing.
    if (e > 0) shifted += e * x;
    squares += e * e;
    logits += z;
  }
  template <class Other>
  SIMT_FN void Add(RowSums<Other> other) {
    const float larger = simt::Max(max, other.max);
    MoveTo(larger);
    other.MoveTo(larger);
    exp += other.exp;
    shifted += other.shifted;
    squares += other.squares;
    logits += other.logits;
  }
};

SIMT_FN RowFacts FactsOf(const RowSums<double>& sums, float target_logit, int64_t vocab_size) {
  const double log_total = std::log(sums.exp);
  return {RowSums<double>::ShiftOf(sums.max) + log_total, target_logit,
          static_cast<float>(log_total - sums.shifted / sums.exp),
          static_cast<float>(sums.squares / (sums.exp * sums.exp)),
          static_cast<float>(sums.logits / static_cast<double>(vocab_size))};
}

// Sink::Write(row, counts, statistics) takes them; those of a row that does not count are 0.
template <class T, class Sink>
struct DeviceRowStatistics {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 5 * kWarps * sizeof(double);

  struct Params {
    DeviceLogits<T> in;
    Sink sink;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    for (int64_t row = simt::BlockIndex(); row < p.in.num_rows; row += simt::GridSize()) {
      if (!RowCounts(p.in.mask, p.in.weights, row)) {
        if (simt::ThreadIndex() == 0) p.sink.Write(row, false, {});
        continue;
      }
      Statistics(p, row, reinterpret_cast<double*>(shared));
    }
  }

 private:
  using Sums = RowSums<double>;

  // Floats within a chunk, doubles over chunks.
  static SIMT_FN void Add(const float (&z)[internal::kChunk], int count, Sums& sums) {
    float max = sums.max;
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) {
      if (i < count) max = simt::Max(z[i], max);
    }
    if (max > sums.max) sums.MoveTo(max);
    RowSums<float> chunk{max};
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) {
      if (i < count) chunk.AddWord(z[i]);
    }
    sums.exp += chunk.exp;
    sums.shifted += chunk.shifted;
    sums.squares += chunk.squares;
    sums.logits += chunk.logits;
  }

  static SIMT_FN void Statistics(const Params& p, int64_t row, double* shared) {
    const DeviceLogits<T>& in = p.in;
    const T* logits = in.logits + row * in.stride;
    Sums sums;
    for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < in.vocab_size;
         first += int64_t{kThreads} * internal::kChunk) {
      float z[internal::kChunk];
      const int count = internal::ChunkLength(first, in.vocab_size);
      internal::LoadChunk(logits, first, count, in.vector_access, z);
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) z[i] = in.activation.Forward(z[i]);
      Add(z, count, sums);
    }

    // The row's maximum, then sums relative to it. Each lies apart and is written after a barrier
    // that its readers of the previous row passed or reach later: two barriers per row are enough.
    const int warp = simt::WarpIndex();
    const bool first_lane = simt::LaneIndex() == 0;
    const double warp_max = FoldLanes(Fold::kMax, sums.max);
    if (first_lane) simt::Store(shared + warp, warp_max);
    simt::SyncThreads();
    const auto max = static_cast<float>(FoldFew<kWarps>(Fold::kMax, shared));
    sums.MoveTo(max);
    const double exp = FoldLanes(Fold::kSum, sums.exp);
    const double shifted = FoldLanes(Fold::kSum, sums.shifted);
    const double squares = FoldLanes(Fold::kSum, sums.squares);
    const double sum_logits = FoldLanes(Fold::kSum, sums.logits);
    if (first_lane) {
      simt::Store(shared + kWarps + warp, exp);
      simt::Store(shared + 2 * kWarps + warp, shifted);
      simt::Store(shared + 3 * kWarps + warp, squares);
      simt::Store(shared + 4 * kWarps + warp, sum_logits);
    }
    simt::SyncThreads();
    if (simt::ThreadIndex() != 0) return;
    const Sums total{max, FoldFew<kWarps>(Fold::kSum, shared + kWarps),
                     FoldFew<kWarps>(Fold::kSum, shared + 2 * kWarps),
                     FoldFew<kWarps>(Fold::kSum, shared + 3 * kWarps),
                     FoldFew<kWarps>(Fold::kSum, shared + 4 * kWarps)};
    const int32_t target = simt::Load(in.targets + row);
    float logit = simt::BitsToFloat(0x7fc00000);
    if (target >= 0 && target < in.vocab_size) {
      logit = in.activation.Forward(LoadFloat(logits + target));
    }
    p.sink.Write(row, true, FactsOf(total, logit, in.vocab_size));
  }
};

// How many targets of rows that count lie outside the vocabulary, and the first such row.
struct DeviceTargetCheck {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 2 * kWarps * sizeof(double);

  struct Params {
    const uint8_t* mask;   // [num_rows] or null
    const float* weights;  // [num_rows] or null
    const int32_t* targets;
    int64_t num_rows, vocab_size;
    double* found;  // [2]: count, first row (infinity without one)
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const auto bad = [&](int64_t row) {
      if (!RowCounts(p.mask, p.weights, row)) return false;
      const int32_t target = simt::Load(p.targets + row);
      return target < 0 || target >= p.vocab_size;
    };
    CountRowsWhere<kThreads>(p.num_rows, bad, reinterpret_cast<double*>(shared), p.found);
  }
};

// What a row's gradient is made of: dz = p scale + p ln p slope + offset, plus `at_target` at the
// target.
struct RowGradient {
  float scale, slope, offset, at_target;

  SIMT_FN bool IsZero() const { return scale == 0 && slope == 0 && offset == 0 && at_target == 0; }
};

// d_logits = du, in the place of the logits too. Source::Of(params, row) gives the
// RowGradient of a row. A row of zeros is written 0 and not read.
template <class T, class Source>
struct DeviceRowGradients {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceLogits<T> in;
    const double* lse;  // [num_rows]
    Source source;
    T* d_logits;
    int64_t d_stride;
    bool vector_stores;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const DeviceLogits<T>& in = p.in;
    for (int64_t row = simt::BlockIndex(); row < in.num_rows; row += simt::GridSize()) {
      const RowGradient g = p.source.Of(row);
      const bool zero = g.IsZero();
      const T* from = in.logits + row * in.stride;
      T* to = p.d_logits + row * p.d_stride;
      // The log-sum-exp in two floats, the first of which subtracts without error from logits near
      // it.
      const double lse = zero ? 0 : simt::Load(p.lse + row);
      const auto high = static_cast<float>(lse), low = static_cast<float>(lse - double{high});
      const int64_t target = simt::Load(in.targets + row);
      for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < in.vocab_size;
           first += int64_t{kThreads} * internal::kChunk) {
        float z[internal::kChunk] = {};
        const int count = internal::ChunkLength(first, in.vocab_size);
        if (!zero) {
          internal::LoadChunk(from, first, count, in.vector_access, z);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            const float logit = in.activation.Forward(z[i]);
            const float log_p = logit - high - low;
            const float probability = simt::Exp2(log_p * internal::kLog2e);
            float dz = probability * g.scale + g.offset;
            // An impossible token has log p = -infinity.
            if (g.slope != 0 && probability != 0) dz += g.slope * log_p * probability;
            if (first + i == target) dz += g.at_target;
            z[i] = in.activation.Backward(dz, logit);
          }
        }
        internal::StoreChunk(z, to, first, count, p.vector_stores);
      }
    }
  }
};

// Of the policy loss.
struct LossRowSink {
  double* lse;         // [num_rows]
  float* logprobs;     // [num_rows]
  float* entropies;    // [num_rows] or null
  float* sum_squares;  // [num_rows] or null

  SIMT_FN void Write(int64_t row, bool, const RowFacts& s) const {
    simt::Store(lse + row, s.lse);
    // A difference of doubles: near 0 the log-probability keeps its digits.
    simt::Store(logprobs + row, static_cast<float>(s.target_logit - s.lse));
    if (entropies != nullptr) simt::Store(entropies + row, s.entropy);
    if (sum_squares != nullptr) simt::Store(sum_squares + row, s.sum_squares);
  }
};

// Of the policy loss: d logprob = 1[target] - p, d H = -p (ln p + H).
struct LossRowGradients {
  const float* d_loss;       // [1]
  const float* d_logprobs;   // [num_rows]
  const float* d_entropies;  // [num_rows] or null
  const float* entropies;    // [num_rows], with d_entropies

  SIMT_FN RowGradient Of(int64_t row) const {
    const float by_logprob = simt::Load(d_logprobs + row);
    const float by_entropy = d_entropies == nullptr ? 0.0f : simt::Load(d_entropies + row);
    if (by_logprob == 0 && by_entropy == 0) return {};  // masked and dropped rows
    const float factor = simt::Load(d_loss), c = factor * by_logprob, e = factor * by_entropy;
    const float entropy = by_entropy == 0 ? 0.0f : simt::Load(entropies + row);
    return {-c - e * entropy, -e, 0, c};
  }
};

}  // namespace varlen
