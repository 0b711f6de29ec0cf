#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/device-reduce.h"
#include "core/row-softmax-device.h"
#include "core/simt/simt.h"

// The generalized Jensen-Shannon divergence on a GPU. A block takes a row: one pass over both sides
// for their log-sum-exps, one for L and the inner sum; another launch weighs the tokens and adds up
// the loss in an order that does not depend on the grid. Every pointer is device memory.
namespace varlen::jsd {

struct DeviceOptions {
  DeviceActivation activation;
  float beta, log_beta, log_rest;  // ln beta, ln(1 - beta)
  float floor;                     // of ln p; -infinity: off
  float loss_scale;
};

inline DeviceOptions DeviceOptionsOf(float beta, float temperature, float softcap,
                                     float logit_scale, float teacher_floor, float loss_scale) {
  return {{temperature, softcap, logit_scale},
          beta,
          std::log(beta),
          std::log1p(-beta),
          teacher_floor < 0 ? teacher_floor : -std::numeric_limits<float>::infinity(),
          loss_scale};
}

// Whose the rows of logits are. By default row i is token i's and all are there; else rows are
// those of the tokens that count, in order, behind `first` others.
struct RowTokens {
  const int32_t* order = nullptr;  // [num_rows], tokens
  const int32_t* count = nullptr;  // [1]: how many tokens count
  int64_t first = 0;

  SIMT_FN int64_t NumRows(int64_t most) const {
    if (count == nullptr) return most;
    const int64_t left = simt::Load(count) - first;
    return left < 0 ? 0 : left < most ? left : most;
  }
  SIMT_FN int64_t TokenOf(int64_t row) const {
    return order == nullptr ? row : simt::Load(order + row);
  }
};

// Student and teacher logits [num_rows, vocab_size], rows `stride` apart. What belongs to tokens is
// found by RowTokens.
template <class S, class T>
struct DeviceSides {
  const S* student;
  const T* teacher;
  int64_t student_stride, teacher_stride;
  const uint8_t* mask;  // [num_tokens] or null
  int64_t num_rows, vocab_size;
  DeviceOptions options;
  bool vector_student, vector_teacher;  // rows begin at multiples of 16 bytes
  RowTokens tokens{};
};

// A row's log-sum-exp, in two floats of which the first subtracts without error from logits near
// it.
struct SplitLse {
  float high, low;

  SIMT_FN explicit SplitLse(double lse)
      : high(static_cast<float>(lse)), low(static_cast<float>(lse - double{high})) {}
  SIMT_FN float LogProbability(float z) const { return z - high - low; }
};

// One word of both sides.
struct Word {
  float log_q, log_p, q, p;

  SIMT_FN Word(const DeviceOptions& options, float student, float teacher)
      : log_q(student),
        log_p(teacher < options.floor ? options.floor : teacher),
        q(simt::Exp2(log_q * internal::kLog2e)),
        p(simt::Exp2(log_p * internal::kLog2e)) {}

  // 0 ln 0 = 0.
  static SIMT_FN float Times(float probability, float x) {
    return probability == 0 ? 0.0f : probability * x;
  }
  // ln((1 - beta) q + beta p), from the larger of the two terms.
  SIMT_FN float LogMixture(const DeviceOptions& options) const {
    const float a = log_q + options.log_rest, b = log_p + options.log_beta;
    const float high = a > b ? a : b, low = a > b ? b : a;
    const float gap = low == -simt::Infinity() ? low : low - high;
    return high + std::log1p(simt::Exp2(gap * internal::kLog2e));
  }
  // h of the header.
  SIMT_FN float Slope(const DeviceOptions& options) const {
    if (options.beta == 1) return log_q - log_p;
    return (1 - options.beta) * (log_q - LogMixture(options));
  }
  SIMT_FN void Add(const DeviceOptions& options, float& loss, float& inner) const {
    if (options.beta == 0) {
      loss += Times(p, log_p - log_q);
      return;
    }
    const float qh = Times(q, Slope(options));
    inner += qh;
    loss += qh;
    if (options.beta != 1) loss += options.beta * Times(p, log_p - LogMixture(options));
  }
  // dz.
  SIMT_FN float Gradient(const DeviceOptions& options, float inner) const {
    if (options.beta == 0) return q - p;
    return Times(q, Slope(options) - inner);
  }
};

template <class S, class T>
struct DeviceDivergence {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 4 * kWarps * sizeof(double);

  struct Params {
    DeviceSides<S, T> in;
    float* per_token;  // [num_tokens]; this and the others are 0 where the mask is
    double* student_lse;
    double* teacher_lse;
    double* inner;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int64_t rows = p.in.tokens.NumRows(p.in.num_rows);
    for (int64_t row = simt::BlockIndex(); row < rows; row += simt::GridSize()) {
      const int64_t token = p.in.tokens.TokenOf(row);
      if (RowCounts(p.in.mask, nullptr, token)) {
        Divergence(p, row, token, reinterpret_cast<double*>(shared));
      } else if (simt::ThreadIndex() == 0) {
        simt::Store(p.per_token + token, 0.0f);
        simt::Store(p.student_lse + token, 0.0);
        simt::Store(p.teacher_lse + token, 0.0);
        simt::Store(p.inner + token, 0.0);
      }
    }
  }

 private:
  static SIMT_FN void Divergence(const Params& p, int64_t row, int64_t token, double* shared) {
    const DeviceSides<S, T>& in = p.in;
    const S* student = in.student + row * in.student_stride;
    const T* teacher = in.teacher + row * in.teacher_stride;
    const double student_lse = Lse(in, student, in.vector_student, shared);
    const double teacher_lse = Lse(in, teacher, in.vector_teacher, shared);
    const SplitLse q(student_lse), t(teacher_lse);
    double loss = 0, inner = 0;
    for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < in.vocab_size;
         first += int64_t{kThreads} * internal::kChunk) {
      float z[internal::kChunk], y[internal::kChunk];
      const int count = internal::ChunkLength(first, in.vocab_size);
      internal::LoadChunk(student, first, count, in.vector_student, z);
      internal::LoadChunk(teacher, first, count, in.vector_teacher, y);
      float chunk_loss = 0, chunk_inner = 0;
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        if (i >= count) continue;
        const Word word(in.options, q.LogProbability(in.options.activation.Forward(z[i])),
                        t.LogProbability(in.options.activation.Forward(y[i])));
        word.Add(in.options, chunk_loss, chunk_inner);
      }
      loss += chunk_loss;
      inner += chunk_inner;
    }
    loss = BlockSum(loss, shared + 2 * kWarps);
    inner = BlockSum(inner, shared + 3 * kWarps);
    if (simt::ThreadIndex() != 0) return;
    simt::Store(p.per_token + token, static_cast<float>(in.options.loss_scale * loss));
    simt::Store(p.student_lse + token, student_lse);
    simt::Store(p.teacher_lse + token, teacher_lse);
    simt::Store(p.inner + token, inner);
  }

  template <class E>
  static SIMT_FN double Lse(const DeviceSides<S, T>& in, const E* logits, bool vector_access,
                            double* shared) {
    float max = -simt::Infinity();
    double sum = 0;
    for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < in.vocab_size;
         first += int64_t{kThreads} * internal::kChunk) {
      float z[internal::kChunk];
      const int count = internal::ChunkLength(first, in.vocab_size);
      internal::LoadChunk(logits, first, count, vector_access, z);
      float larger = max;
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        z[i] = in.options.activation.Forward(z[i]);
        if (i < count) larger = simt::Max(z[i], larger);
      }
      if (larger > max) {
        sum *= std::exp(double{max} - double{larger});
        max = larger;
      }
      const float shift = RowSums<float>::ShiftOf(max);
      float chunk = 0;
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        if (i < count) chunk += simt::Exp2((z[i] - shift) * internal::kLog2e);
      }
      sum += chunk;
    }
    const double warp_max = FoldLanes(Fold::kMax, max);
    if (simt::LaneIndex() == 0) simt::Store(shared + simt::WarpIndex(), warp_max);
    simt::SyncThreads();
    const double row_max = FoldFew<kWarps>(Fold::kMax, shared);
    const double shift = RowSums<float>::ShiftOf(static_cast<float>(row_max));
    if (sum > 0) sum *= std::exp(max - shift);
    return shift + std::log(BlockSum(sum, shared + kWarps));
  }

  // The same bits in every thread. `partial` may be written again after the next barrier.
  static SIMT_FN double BlockSum(double value, double* partial) {
    value = FoldLanes(Fold::kSum, value);
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), value);
    simt::SyncThreads();
    return FoldFew<kWarps>(Fold::kSum, partial);
  }
};

// c of every token, how many count, and loss = sum_t c[t] L[t].
struct DeviceWeights {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  enum Column : int { kCount, kLoss, kBad, kFirstBad, kNumColumns };
  static constexpr int64_t kSharedBytes = kNumColumns * kWarps * sizeof(double);

  struct Params {
    const uint8_t* mask;    // [num_rows] or null
    const float* weights;   // [num_rows] or null
    const float* logprobs;  // [num_rows] or null, like the next
    const float* old_logprobs;
    const int32_t* cu_seqlens;  // [num_seqs + 1] or null, like the next
    const float* seq_scale;     // [num_seqs]
    int64_t num_rows, num_seqs;
    float is_clip;           // 0: rho = 1
    const float* per_token;  // [num_rows]
    float* coefficients;     // [num_rows]
    float* loss;             // [1]
    double* tokens;          // [1]
    double* bad_weights;     // [2]: weights negative or not finite, the first row
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    double counted = 0;
    for (int64_t row = simt::ThreadIndex(); row < p.num_rows; row += kThreads) {
      counted += RowCounts(p.mask, nullptr, row);
    }
    const double tokens = BlockFold(Fold::kSum, counted, partial + kCount * kWarps);
    double loss = 0, bad = 0, first_bad = FoldIdentity(Fold::kMin);
    for (int64_t row = simt::ThreadIndex(); row < p.num_rows; row += kThreads) {
      float coefficient = 0;
      if (RowCounts(p.mask, nullptr, row)) {
        const float weight = p.weights == nullptr ? 1.0f : simt::Load(p.weights + row);
        if (!(weight >= 0) || weight - weight != 0) {
          if (bad == 0) first_bad = static_cast<double>(row);
          ++bad;
        }
        const double scale =
            p.seq_scale == nullptr ? 1.0 / tokens : simt::Load(p.seq_scale + SequenceOf(p, row));
        coefficient = static_cast<float>(weight * Ratio(p, row) * scale);
        // A token of weight 0 adds nothing, though its divergence be infinite.
        if (coefficient != 0) loss += double{coefficient} * simt::Load(p.per_token + row);
      }
      simt::Store(p.coefficients + row, coefficient);
    }
    loss = BlockFold(Fold::kSum, loss, partial + kLoss * kWarps);
    bad = BlockFold(Fold::kSum, bad, partial + kBad * kWarps);
    first_bad = BlockFold(Fold::kMin, first_bad, partial + kFirstBad * kWarps);
    if (simt::ThreadIndex() != 0) return;
    simt::Store(p.loss, static_cast<float>(loss));
    simt::Store(p.tokens, tokens);
    simt::Store(p.bad_weights, bad);
    simt::Store(p.bad_weights + 1, first_bad);
  }

 private:
  static SIMT_FN double Ratio(const Params& p, int64_t row) {
    if (!(p.is_clip > 0) || p.logprobs == nullptr) return 1;
    const double raw = double{simt::Load(p.logprobs + row)} - simt::Load(p.old_logprobs + row);
    const double ratio = std::exp(raw < -20 ? -20 : raw > 20 ? 20 : raw);
    return ratio > p.is_clip ? p.is_clip : ratio;
  }
  // The last sequence that begins at or before the row.
  static SIMT_FN int64_t SequenceOf(const Params& p, int64_t row) {
    int64_t low = 0, high = p.num_seqs;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (simt::Load(p.cu_seqlens + middle) <= row ? low : high) = middle;
    }
    return low;
  }
  static SIMT_FN double BlockFold(Fold fold, double value, double* partial) {
    value = FoldLanes(fold, value);
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), value);
    simt::SyncThreads();
    return FoldFew<kWarps>(fold, partial);
  }
};

// What dz of a token's L is multiplied by, loss_scale apart; of the Params of a backward pass.
template <class Params>
SIMT_FN float FactorOf(const Params& p, int64_t token) {
  float factor = 0;
  if (p.d_loss != nullptr) factor = simt::Load(p.d_loss) * simt::Load(p.coefficients + token);
  if (p.d_per_token != nullptr) factor += simt::Load(p.d_per_token + token);
  return factor;
}

template <class S, class T>
struct DeviceDivergenceGradients {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceSides<S, T> in;
    const float* d_loss;        // [1] or null
    const float* d_per_token;   // [num_tokens] or null
    const float* coefficients;  // [num_tokens], like all of the forward pass
    const double* student_lse;
    const double* teacher_lse;
    const double* inner;
    S* d_student;  // [num_rows, vocab_size]; may be the student's logits
    int64_t d_stride;
    bool vector_stores;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const DeviceSides<S, T>& in = p.in;
    const int64_t rows = in.tokens.NumRows(in.num_rows);
    for (int64_t row = simt::BlockIndex(); row < rows; row += simt::GridSize()) {
      const int64_t token = in.tokens.TokenOf(row);
      const bool counts = RowCounts(in.mask, nullptr, token);
      const float factor = counts ? in.options.loss_scale * FactorOf(p, token) : 0.0f;
      const SplitLse q(counts ? simt::Load(p.student_lse + token) : 0);
      const SplitLse t(counts ? simt::Load(p.teacher_lse + token) : 0);
      const auto inner = counts ? static_cast<float>(simt::Load(p.inner + token)) : 0.0f;
      for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < in.vocab_size;
           first += int64_t{kThreads} * internal::kChunk) {
        float z[internal::kChunk] = {}, y[internal::kChunk];
        const int count = internal::ChunkLength(first, in.vocab_size);
        if (counts) {
          internal::LoadChunk(in.student + row * in.student_stride, first, count, in.vector_student,
                              z);
          internal::LoadChunk(in.teacher + row * in.teacher_stride, first, count, in.vector_teacher,
                              y);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            const float logit = in.options.activation.Forward(z[i]);
            const Word word(in.options, q.LogProbability(logit),
                            t.LogProbability(in.options.activation.Forward(y[i])));
            z[i] = in.options.activation.Backward(factor * word.Gradient(in.options, inner), logit);
          }
        }
        internal::StoreChunk(z, p.d_student + row * p.d_stride, first, count, p.vector_stores);
      }
    }
  }
};

}  // namespace varlen::jsd
