#pragma once

#include <cmath>

#include "core/jsd-device.h"
#include "core/row-block-device.h"

// The divergence over some words of each row (core/jsd.h) on a GPU. A block takes a row: the
// log-sum-exps of whole rows, the words (given ones, or the largest of one side, found as in
// core/row-block-device.h), and sums over their bins in float64, whose logits are gathered anew in
// each pass. Every pointer is device memory.
namespace varlen::jsd {

template <class T>
SIMT_FN double RowLogSumExp(RowBlock& block, const RowBlock::Row<T>& row,
                            const DeviceActivation& activation) {
  const double max =
      block.Max(row, [&](int64_t, float u) { return double{activation.Forward(u)}; });
  const float shift = RowSums<float>::ShiftOf(static_cast<float>(max));
  const double sum = block.Sum(row, [&](int64_t, float u) {
    return double{simt::Exp2((activation.Forward(u) - shift) * internal::kLog2e)};
  });
  return shift + std::log(sum);
}

// One bin of both sides.
struct Bin {
  double log_q, log_p;

  static SIMT_FN double Times(double probability, double x) {
    return probability == 0 ? 0 : probability * x;
  }
  SIMT_FN double LogMixture(double beta) const {
    const double a = log_q + std::log1p(-beta), b = log_p + std::log(beta);
    const double high = a > b ? a : b, low = a > b ? b : a;
    return low == -simt::Infinity() ? high : high + std::log1p(std::exp(low - high));
  }
  // h of the header.
  SIMT_FN double Slope(double beta) const {
    return beta == 1 ? log_q - log_p : (1 - beta) * (log_q - LogMixture(beta));
  }
  SIMT_FN void Add(double beta, double& loss, double& inner) const {
    const double p = std::exp(log_p);
    if (beta == 0) {
      loss += Times(p, log_p - log_q);
      return;
    }
    const double qh = Times(std::exp(log_q), Slope(beta));
    inner += qh;
    loss += qh;
    if (beta < 1) loss += Times(beta * p, log_p - LogMixture(beta));
  }
  // dz.
  SIMT_FN double Gradient(double beta, double inner) const {
    const double q = std::exp(log_q);
    return beta == 0 ? q - std::exp(log_p) : Times(q, Slope(beta) - inner);
  }
};

// What is wrong with a row's stored words.
enum WordProblem : int32_t { kNoProblem, kOutsideVocabulary, kTwice };

template <class S, class T>
struct DeviceWordDivergence {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = RowBlock::kSharedBytes;

  struct Params {
    DeviceSides<S, T> in;  // without a teacher where its log-probabilities are stored
    int64_t num_words;
    const int32_t* ids;  // [num_tokens, num_words] or null: the largest of one side
    const T* stored;     // [num_tokens, num_words] with ids
    bool by_teacher, tail_bucket, sampled;
    float* per_token;     // [num_tokens]; this and the others are 0 where the mask is
    double* student_lse;  // [num_tokens]
    int32_t* words;       // [num_tokens, num_words], ascending
    float* slopes;        // [num_tokens, num_words]
    float* tail;          // [num_tokens]
    int32_t* problems;    // [num_tokens], a WordProblem each
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    Worker worker(p, shared);
    const int64_t rows = p.in.tokens.NumRows(p.in.num_rows);
    for (int64_t row = simt::BlockIndex(); row < rows; row += simt::GridSize()) {
      const int64_t token = p.in.tokens.TokenOf(row);
      if (RowCounts(p.in.mask, nullptr, token)) {
        worker.Diverge(row, token);
      } else {
        Clear(p, token);
      }
    }
  }

 private:
  static SIMT_FN void Clear(const Params& p, int64_t token) {
    for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
      simt::Store(p.words + token * p.num_words + k, 0);
      simt::Store(p.slopes + token * p.num_words + k, 0.0f);
    }
    if (simt::ThreadIndex() != 0) return;
    simt::Store(p.per_token + token, 0.0f);
    simt::Store(p.student_lse + token, 0.0);
    simt::Store(p.tail + token, 0.0f);
    simt::Store(p.problems + token, int32_t{kNoProblem});
  }

  struct Worker {
    SIMT_FN Worker(const Params& p, unsigned char* shared) : p(p), block(shared) {}

    SIMT_FN void Diverge(int64_t row, int64_t token) {
      const DeviceSides<S, T>& in = p.in;
      student = {in.student + row * in.student_stride, in.vocab_size, in.vector_student};
      student_lse = RowLogSumExp(block, student, in.options.activation);
      teacher_lse = 0;
      words = p.words + token * p.num_words;
      ids = words;
      stored = nullptr;
      if (p.stored != nullptr) {
        ids = p.ids + token * p.num_words;
        stored = p.stored + token * p.num_words;
      } else {
        teacher = {in.teacher + row * in.teacher_stride, in.vocab_size, in.vector_teacher};
        teacher_lse = RowLogSumExp(block, teacher, in.options.activation);
        if (p.by_teacher) {
          TakeLargest(teacher);
        } else {
          TakeLargest(student);
        }
      }
      if (p.sampled) {
        FinishSampled(token);
      } else {
        Finish(token);
      }
      simt::SyncThreads();  // `words` has been read where it will be written
    }

    // The words of the row's largest logits, in ascending order.
    template <class E>
    SIMT_FN void TakeLargest(const RowBlock::Row<E>& row) {
      const DeviceActivation& activation = p.in.options.activation;
      const OrderCut cut = block.FindCut(
          row, static_cast<double>(p.num_words), [&](float u) { return activation.Forward(u); },
          [](uint32_t, int64_t, float) { return 1.0; });
      int64_t done = 0;
      for (int64_t tile = 0; tile < row.size; tile += kThreads * internal::kChunk) {
        const int64_t first = tile + int64_t{simt::ThreadIndex()} * internal::kChunk;
        bool kept[internal::kChunk] = {};
        int own = 0;
        if (first < row.size) {
          const int count = internal::ChunkLength(first, row.size);
          float u[internal::kChunk];
          internal::LoadChunk(row.data, first, count, row.vector_access, u);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            kept[i] = i < count && cut.Keeps(OrderKey(activation.Forward(u[i])), first + i);
            own += kept[i];
          }
        }
        double all;
        int64_t at = done + static_cast<int64_t>(block.SumBefore(own, &all));
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) {
          if (kept[i]) simt::Store(words + at++, static_cast<int32_t>(first + i));
        }
        done += static_cast<int64_t>(all);
      }
      simt::SyncThreads();  // all words are there
    }

    SIMT_FN bool Known(int32_t word) const { return word >= 0 && word < p.in.vocab_size; }
    template <class E>
    SIMT_FN double LogProbability(const RowBlock::Row<E>& row, int32_t word, double lse) const {
      if (!Known(word)) return NAN;
      return double{p.in.options.activation.Forward(LoadFloat(row.data + word))} - lse;
    }
    // Of the word at k, before anything is renormalised.
    SIMT_FN Bin BinAt(int64_t k) const {
      const int32_t word = simt::Load(ids + k);
      const double log_q = LogProbability(student, word, student_lse);
      if (stored != nullptr) return {log_q, double{LoadFloat(stored + k)}};
      return {log_q, LogProbability(teacher, word, teacher_lse)};
    }
    SIMT_FN double Floored(double log_p) const {
      return log_p < p.in.options.floor ? double{p.in.options.floor} : log_p;
    }

    // ln of the sum over the words of e^value(bin).
    template <class Value>
    SIMT_FN double LogSum(const Value& value) {
      double max = -simt::Infinity();
      for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
        const double one = value(BinAt(k));
        max = one > max ? one : max;
      }
      max = block.Reduce(Fold::kMax, max);
      if (max == -simt::Infinity()) return max;
      double sum = 0;
      for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
        sum += std::exp(value(BinAt(k)) - max);
      }
      return max + std::log(block.Reduce(Fold::kSum, sum));
    }
    // ln(1 - e^lse), of at least 1e-7: a sum may round to 1.
    static SIMT_FN double LogTail(double lse) {
      return std::log(-std::expm1(lse < -1e-7 ? lse : -1e-7));
    }

    SIMT_FN void Finish(int64_t token) {
      const double beta = p.in.options.beta;
      const double lse_q = LogSum([](const Bin& bin) { return bin.log_q; });
      const double lse_p = LogSum([](const Bin& bin) { return bin.log_p; });
      const double shift_q = p.tail_bucket ? 0 : lse_q, shift_p = p.tail_bucket ? 0 : lse_p;
      const auto bin_at = [&](int64_t k) {
        const Bin bin = BinAt(k);
        return Bin{bin.log_q - shift_q, Floored(bin.log_p - shift_p)};
      };
      const Bin rest{LogTail(lse_q), Floored(LogTail(lse_p))};
      double loss = 0, inner = 0;
      for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
        bin_at(k).Add(beta, loss, inner);
      }
      if (p.tail_bucket && simt::ThreadIndex() == 0) rest.Add(beta, loss, inner);
      loss = block.Reduce(Fold::kSum, loss);
      inner = block.Reduce(Fold::kSum, inner);
      const double problem =
          WriteWords(token, [&](int64_t k) { return bin_at(k).Gradient(beta, inner); });
      // Over its q: the bin's belongs to every word that has none of its own.
      const double tail = p.tail_bucket ? rest.Gradient(beta, inner) / std::exp(rest.log_q) : 0;
      Write(token, loss, tail, problem);
    }

    SIMT_FN void FinishSampled(int64_t token) {
      const Bin bin = BinAt(0);
      const double weight = bin.log_q - Floored(bin.log_p);
      const double problem =
          WriteWords(token, [&](int64_t) { return weight * -std::expm1(bin.log_q); });
      Write(token, weight * bin.log_q, -weight, problem);
    }

    // Words and slopes in ascending order, each thread its words at their ranks; the worst problem.
    template <class Slope>
    SIMT_FN double WriteWords(int64_t token, const Slope& slope) {
      double problem = kNoProblem;
      for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
        const int32_t word = simt::Load(ids + k);
        int64_t rank = k;
        if (stored != nullptr) {
          rank = 0;
          for (int64_t i = 0; i < p.num_words; ++i) {
            const int32_t other = simt::Load(ids + i);
            rank += other < word || (other == word && i < k);
            if (other == word && i != k) problem = kTwice;
          }
          if (!Known(word)) problem = kOutsideVocabulary;
          simt::Store(words + rank, word);
        }
        simt::Store(p.slopes + token * p.num_words + rank, static_cast<float>(slope(k)));
      }
      return block.Reduce(Fold::kMax, problem);
    }

    SIMT_FN void Write(int64_t token, double loss, double tail, double problem) const {
      if (simt::ThreadIndex() != 0) return;
      simt::Store(p.per_token + token, static_cast<float>(p.in.options.loss_scale * loss));
      simt::Store(p.student_lse + token, student_lse);
      simt::Store(p.tail + token, static_cast<float>(tail));
      simt::Store(p.problems + token, static_cast<int32_t>(problem));
    }

    const Params& p;
    RowBlock block;
    RowBlock::Row<S> student{};
    RowBlock::Row<T> teacher{};
    double student_lse = 0, teacher_lse = 0;
    int32_t* words = nullptr;
    const int32_t* ids = nullptr;
    const T* stored = nullptr;
  };
};

// The first token whose stored words are wrong, and its first word that is, in ascending order.
struct DeviceWordProblems {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = kWarps * sizeof(double);
  enum Found : int { kProblem, kToken, kWord, kNumFound };

  struct Params {
    const int32_t* problems;  // [num_tokens]
    const int32_t* words;     // [num_tokens, num_words], ascending
    int64_t num_tokens, num_words, vocab_size;
    int32_t* found;  // [kNumFound]
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    double first = FoldIdentity(Fold::kMin);
    for (int64_t token = simt::ThreadIndex(); token < p.num_tokens; token += kThreads) {
      if (simt::Load(p.problems + token) == kNoProblem) continue;
      first = FoldTwo(Fold::kMin, first, static_cast<double>(token));
    }
    first = FoldLanes(Fold::kMin, first);
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), first);
    simt::SyncThreads();
    if (simt::ThreadIndex() != 0) return;
    first = FoldFew<kWarps>(Fold::kMin, partial);
    simt::Store(p.found + kProblem, int32_t{kNoProblem});
    if (!(first < static_cast<double>(p.num_tokens))) return;
    const auto token = static_cast<int64_t>(first);
    const int32_t* words = p.words + token * p.num_words;
    for (int64_t k = 0; k < p.num_words; ++k) {
      const int32_t word = simt::Load(words + k);
      const bool known = word >= 0 && word < p.vocab_size;
      if (known && (k == 0 || word != simt::Load(words + k - 1))) continue;
      simt::Store(p.found + kProblem, int32_t{known ? kTwice : kOutsideVocabulary});
      simt::Store(p.found + kToken, static_cast<int32_t>(token));
      simt::Store(p.found + kWord, word);
      return;
    }
  }
};

template <class S>
struct DeviceWordGradients {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const S* student;
    int64_t student_stride;
    const uint8_t* mask;  // [num_tokens] or null
    int64_t num_rows, vocab_size, num_words;
    DeviceActivation activation;
    float loss_scale;
    bool vector_student;
    const float* d_loss;        // [1] or null
    const float* d_per_token;   // [num_tokens] or null
    const float* coefficients;  // [num_tokens], like all of the forward pass
    const double* student_lse;
    const int32_t* words;
    const float* slopes;
    const float* tail;
    S* d_student;  // [num_rows, vocab_size]
    int64_t d_stride;
    bool vector_stores;
    RowTokens tokens{};
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t rows = p.tokens.NumRows(p.num_rows);
    for (int64_t row = simt::BlockIndex(); row < rows; row += simt::GridSize()) {
      const int64_t token = p.tokens.TokenOf(row);
      const bool counts = RowCounts(p.mask, nullptr, token);
      const float factor = counts ? p.loss_scale * FactorOf(p, token) : 0.0f;
      const float dense = counts ? factor * simt::Load(p.tail + token) : 0.0f;
      const SplitLse lse(counts ? simt::Load(p.student_lse + token) : 0);
      const S* from = p.student + row * p.student_stride;
      S* to = p.d_student + row * p.d_stride;
      for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < p.vocab_size;
           first += int64_t{kThreads} * internal::kChunk) {
        float z[internal::kChunk] = {};
        const int count = internal::ChunkLength(first, p.vocab_size);
        if (dense != 0) {
          internal::LoadChunk(from, first, count, p.vector_student, z);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            const float logit = p.activation.Forward(z[i]);
            const float q = simt::Exp2(lse.LogProbability(logit) * internal::kLog2e);
            z[i] = p.activation.Backward(dense * q, logit);
          }
        }
        internal::StoreChunk(z, to, first, count, p.vector_stores);
      }
      simt::SyncThreads();  // the words' own gradients take the place of what was just written
      if (!counts) continue;
      for (int64_t k = simt::ThreadIndex(); k < p.num_words; k += kThreads) {
        const int32_t word = simt::Load(p.words + token * p.num_words + k);
        if (word < 0 || word >= p.vocab_size) continue;
        const float logit = p.activation.Forward(LoadFloat(from + word));
        const float dz = factor * simt::Load(p.slopes + token * p.num_words + k);
        simt::Store(to + word, NarrowFloat<S>(p.activation.Backward(dz, logit)));
      }
    }
  }
};

}  // namespace varlen::jsd
