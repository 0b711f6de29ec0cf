// One task of the backward pass: a block of keys against all query rows that keep some of them.
// Included once per target.
//
// dk and dv of the block belong to the task alone. dq of a block of rows is summed over key blocks
// in the order of the keys: a task that comes to a block of rows waits until the live key block
// before its own has been added. Tasks are handed out in that order, so the one waited for is
// always running or done; in the steady state nobody waits, since tasks follow each other through
// the rows. The result is the same for any number of threads.
#if defined(VARLEN_ATTENTION_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_ATTENTION_BACKWARD_INL_H_
#undef VARLEN_ATTENTION_BACKWARD_INL_H_
#else
#define VARLEN_ATTENTION_BACKWARD_INL_H_
#endif

#include <atomic>

#include "core/gradient-rows-inl.h"
#include "core/parallel.h"
#include "ops/varlen-attention/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::varlen_attention {
namespace HWY_NAMESPACE {

// `Units`: what one step of the products multiplies (gemm-inl.h). With units of two bfloat16, P and
// dU are rounded to bfloat16 for the products that they enter, as on a GPU.
template <class T, class Units>
class BackwardBlock {
 public:
  static constexpr int kExpDegree = std::is_same_v<T, float> ? 6 : 5;

  // `dq_sum` [rows of the problem][stride], `progress` [row blocks]: shared by the problem's tasks.
  BackwardBlock(const Backward& params, const Problem& problem, int64_t key_block, float* dq_sum,
                std::atomic<int32_t>* progress, const std::atomic<bool>& failed)
      : params_(params),
        problem_(problem),
        key_block_(key_block),
        keys_{key_block * kKeyBlock,
              std::min(problem.sequence.k_length, (key_block + 1) * kKeyBlock)},
        dim_(problem.head_dim),
        stride_(RoundUp(dim_, kLanes)),
        columns_(RoundUp(dim_, kPanel)),
        depth_(UnitsFor<Units>(dim_)),
        depth_stride_(RoundUp(depth_, kLanes)),
        dq_sum_(dq_sum),
        progress_(progress),
        failed_(failed),
        memory_(2 * Workspace::BytesFor<float>(kKeyBlock * depth_stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * stride_) +
                Workspace::BytesFor<float>(kKeyUnits * columns_) +
                2 * Workspace::BytesFor<float>(kRowUnits * columns_) +
                2 * Workspace::BytesFor<float>(kRowBlock * depth_stride_) +
                Workspace::BytesFor<float>(kPanel * depth_stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * kScoreStride) +
                (kPaired ? 3 : 0) * Workspace::BytesFor<float>(kKeyBlock * kRowUnits) +
                2 * Workspace::BytesFor<float>(kRowBlock) + RowInfo::BytesFor(kRowBlock)),
        k_rows_(memory_.Take<float>(kKeyBlock * depth_stride_)),
        v_rows_(memory_.Take<float>(kKeyBlock * depth_stride_)),
        dk_(memory_.Take<float>(kKeyBlock * stride_)),
        dv_(memory_.Take<float>(kKeyBlock * stride_)),
        k_panels_(memory_.Take<float>(kKeyUnits * columns_)),
        q_panels_(memory_.Take<float>(kRowUnits * columns_)),
        q_transposed_(memory_.Take<float>(kRowBlock * depth_stride_)),
        d_out_panels_(memory_.Take<float>(kRowUnits * columns_)),
        d_out_transposed_(memory_.Take<float>(kRowBlock * depth_stride_)),
        staged_(memory_.Take<float>(kPanel * depth_stride_)),
        weights_(memory_.Take<float>(kKeyBlock * kScoreStride)),
        d_scores_(memory_.Take<float>(kKeyBlock * kScoreStride)),
        weight_rows_(kPaired ? memory_.Take<float>(kKeyBlock * kRowUnits) : weights_),
        d_score_rows_(kPaired ? memory_.Take<float>(kKeyBlock * kRowUnits) : d_scores_),
        d_score_keys_(kPaired ? memory_.Take<float>(kKeyUnits * kRowBlock) : d_scores_),
        lse_log2_(memory_.Take<float>(kRowBlock)),
        delta_(memory_.Take<float>(kRowBlock)),
        info_(memory_, kRowBlock) {
    std::fill_n(dk_, kKeyBlock * stride_, 0.0f);
    std::fill_n(dv_, kKeyBlock * stride_, 0.0f);
    std::fill_n(staged_, kPanel * depth_stride_, 0.0f);
  }

  void Run() {
    PackKeys();
    const LiveBlocks live(problem_.options, problem_.sequence, problem_.group);
    for (int64_t b = live.FirstRowBlock(key_block_); b < live.EndRowBlock(key_block_); ++b) {
      if (!live(b, key_block_)) continue;
      if (!AddRows(b, live)) return;  // cancelled, or out of memory elsewhere
    }
    StoreKeys();
  }

 private:
  static constexpr bool kPaired = Units::kPerUnit == 2;
  static constexpr int64_t kKeyUnits = kKeyBlock / Units::kPerUnit;
  static constexpr int64_t kRowUnits = kRowBlock / Units::kPerUnit;
  // Scores are kept in float32 for the whole row block, or, if they are rounded to units of their
  // own, for one panel at a time.
  static constexpr int64_t kScoreStride = kPaired ? kPanel : kRowBlock;

  void PackKeys() {
    const int64_t count = keys_.end - keys_.begin;
    const int64_t first = problem_.sequence.k_begin + keys_.begin;
    const auto key = [&](int64_t j) {
      return ElementAt<T>(params_.k, first + j, problem_.kv_head);
    };
    for (int64_t j = 0; j < count; ++j) {
      PackRow<Units>(key(j), dim_, k_rows_ + j * depth_stride_, depth_stride_);
      PackRow<Units>(ElementAt<T>(params_.v, first + j, problem_.kv_head), dim_,
                     v_rows_ + j * depth_stride_, depth_stride_);
    }
    PackRowsToPanels<Units>(count, key, dim_, k_panels_, kKeyUnits);
  }

  void StoreKeys() {
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      const int64_t row = problem_.sequence.k_begin + j, at = j - keys_.begin;
      StoreScaledRow(dk_ + at * stride_, dim_, params_.options.softmax_scale,
                     ElementAt<T>(params_.dk, row, problem_.kv_head));
      StoreScaledRow(dv_ + at * stride_, dim_, 1.0f,
                     ElementAt<T>(params_.dv, row, problem_.kv_head));
    }
  }

  // Everything this key block has to do with row block `b`.
  bool AddRows(int64_t b, const LiveBlocks& live) {
    row_begin_ = b * kRowBlock;
    rows_ = std::min(kRowBlock, problem_.rows() - row_begin_);
    info_.Fill(problem_, row_begin_, rows_);
    PackRows();
    for (int64_t first = 0; first < rows_; first += kPanel) {
      if (Cancelled()) return false;
      if (rows_ - first > kLanes) {
        Differentiate<2>(first);
      } else {
        Differentiate<1>(first);
      }
    }
    AddKeyGradients();
    if (!WaitFor(b, live.Previous(b, key_block_))) return false;
    AddQueryGradients(live.Previous(b, key_block_) < 0);
    if (live.Next(b, key_block_) < 0) StoreQueryGradients();
    progress_[b].store(static_cast<int32_t>(key_block_), std::memory_order_release);
    return true;
  }

  void PackRows() {
    const auto row_of = [&](const Tensor& tensor) {
      return [&](int64_t r) {
        const int64_t row = row_begin_ + r;
        return ElementAt<T>(tensor, problem_.QueryRow(row), problem_.HeadOf(row));
      };
    };
    const auto q = row_of(params_.q), d_out = row_of(params_.d_out);
    PackRowsToPanels<Units>(rows_, q, dim_, q_panels_, kRowUnits);
    PackRowsToPanels<Units>(rows_, d_out, dim_, d_out_panels_, kRowUnits);
    for (int64_t first = 0; first < rows_; first += kPanel) {
      const int64_t count = std::min(kPanel, rows_ - first);
      // The second half of a last unit of one row: a zero row, whose P and dU are zero.
      if (kPaired && count % 2 == 1) {
        std::fill_n(staged_ + count * depth_stride_, depth_stride_, 0.0f);
      }
      for (int64_t r = 0; r < count; ++r) {
        PackQueryRow<Units>(problem_, q(first + r), staged_ + r * depth_stride_, depth_stride_);
      }
      TransposeToPanel(staged_, depth_stride_, RoundUp(depth_, 4), count,
                       q_transposed_ + first * depth_stride_);
      for (int64_t r = 0; r < count; ++r) {
        PackRow<Units>(d_out(first + r), dim_, staged_ + r * depth_stride_, depth_stride_);
        PackRowScalars(first + r, d_out(first + r));
      }
      TransposeToPanel(staged_, depth_stride_, RoundUp(depth_, 4), count,
                       d_out_transposed_ + first * depth_stride_);
    }
    const int64_t padded = RoundUp(rows_, kPanel);
    std::fill(lse_log2_ + rows_, lse_log2_ + padded, kInfinity);
    std::fill(delta_ + rows_, delta_ + padded, 0.0f);
  }

  // lse in base 2, and delta = dout . out - dlse. A row that keeps no key has P = 0 everywhere:
  // its lse is never used unmasked, and +inf makes the weight 0 in any case.
  void PackRowScalars(int64_t r, const T* d_out) {
    const int64_t packed = problem_.QueryRow(row_begin_ + r);
    const int64_t head = problem_.HeadOf(row_begin_ + r);
    const int64_t index = head * params_.q.shape[0] + packed;
    const float lse = params_.softmax_lse.template data<float>()[index];
    lse_log2_[r] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    const T* out = ElementAt<T>(params_.out, packed, head);
    const float d_lse = params_.d_lse ? params_.d_lse.template data<float>()[index] : 0.0f;
    delta_[r] = DotRows(d_out, out, dim_) - d_lse;
  }

  // P and dU of one panel of rows; zeros for the keys of the block that no row of the panel keeps.
  template <int kVectors>
  void Differentiate(int64_t first) {
    const int64_t last = std::min(first + kPanel, rows_);
    KeyRange live = info_.Hull(first, last, keys_);
    if (!live.empty() && problem_.tree() != nullptr &&
        TreeIsDead(problem_.tree(), live, info_.token[first])) {
      live.end = live.begin;
    }
    if (live.empty()) live = {keys_.begin, keys_.begin};

    // Row j: key j of the sequence.
    const int64_t column = kPaired ? 0 : first;
    float* weights = weights_ - keys_.begin * kScoreStride + column;
    float* d_scores = d_scores_ - keys_.begin * kScoreStride + column;
    const int64_t skipped = live.begin - keys_.begin, count = live.end - live.begin;
    if (count > 0) {
      MultiplyPanel<Order::kRows, Units>(
          count, depth_, k_rows_ + skipped * depth_stride_, depth_stride_,
          q_transposed_ + first * depth_stride_, kVectors * kLanes,
          ScoreTile<Units>(problem_, weights + live.begin * kScoreStride, kScoreStride));
      MultiplyPanel<Order::kRows, Units>(
          count, depth_, v_rows_ + skipped * depth_stride_, depth_stride_,
          d_out_transposed_ + first * depth_stride_, kVectors * kLanes,
          StoreTile{d_scores + live.begin * kScoreStride, kScoreStride});
    }

    const Floats d;
    const PanelRows<kVectors> rows(problem_, info_, first);
    const KeyRange plain = PlainKeys(problem_, info_, first, first + kVectors * kLanes, live);
    Vector lse[kVectors], delta[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      lse[v] = hn::LoadU(d, lse_log2_ + first + v * kLanes);
      delta[v] = hn::LoadU(d, delta_ + first + v * kLanes);
    }
    const auto clear = [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t j = begin; j < end; ++j) {
        for (int v = 0; v < kVectors; ++v) {
          hn::Store(hn::Zero(d), d, weights + j * kScoreStride + v * kLanes);
          hn::Store(hn::Zero(d), d, d_scores + j * kScoreStride + v * kLanes);
        }
      }
    };
    const auto masked = [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t j = begin; j < end; ++j) {
        for (int v = 0; v < kVectors; ++v) {
          float* p = weights + j * kScoreStride + v * kLanes;
          float* ds = d_scores + j * kScoreStride + v * kLanes;
          const auto keep = rows.Keep(v, j);
          Vector tanh = hn::Zero(d);
          const Vector score = rows.Score(v, j, hn::Load(d, p), &tanh);
          const Vector weight = hn::IfThenElseZero(keep, Exp2<kExpDegree>(hn::Sub(score, lse[v])));
          const Vector slope_of_cap = hn::NegMulAdd(tanh, tanh, hn::Set(d, 1.0f));
          const Vector d_score =
              hn::Mul(hn::Mul(weight, slope_of_cap), hn::Sub(hn::Load(d, ds), delta[v]));
          hn::Store(weight, d, p);
          hn::Store(hn::IfThenElseZero(keep, d_score), d, ds);
        }
      }
    };
    clear(keys_.begin, live.begin);
    masked(live.begin, plain.begin);
    for (int64_t j = plain.begin; j < plain.end; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        float* p = weights + j * kScoreStride + v * kLanes;
        float* ds = d_scores + j * kScoreStride + v * kLanes;
        const Vector weight = Exp2<kExpDegree>(hn::Sub(hn::Load(d, p), lse[v]));
        hn::Store(weight, d, p);
        hn::Store(hn::Mul(weight, hn::Sub(hn::Load(d, ds), delta[v])), d, ds);
      }
    }
    masked(plain.end, live.end);
    clear(live.end, keys_.end);
    if constexpr (kPaired) RoundScores<kVectors>(first);
  }

  // The panel's P and dU as the units of the products that follow: of rows for dv and dk, of keys
  // for dq.
  template <int kVectors>
  void RoundScores(int64_t first) {
    const Floats d;
    const int64_t count = keys_.end - keys_.begin;
    const auto load = [&](const float* scores, int64_t j, int v) HWY_ATTR {
      return v < kVectors && j < count ? hn::Load(d, scores + j * kScoreStride + v * kLanes)
                                       : hn::Zero(d);
    };
    for (int64_t j = 0; j < count; j += 2) {
      Vector d_score[2][2];
      for (int64_t k = 0; k < 2; ++k) {
        for (int v = 0; v < 2; ++v) d_score[k][v] = load(d_scores_, j + k, v);
        if (j + k == count) continue;
        const int64_t at = (j + k) * kRowUnits + first / 2;
        hn::Store(Units::Join(load(weights_, j + k, 0), load(weights_, j + k, 1)), d,
                  weight_rows_ + at);
        hn::Store(Units::Join(d_score[k][0], d_score[k][1]), d, d_score_rows_ + at);
      }
      for (int v = 0; v < kVectors; ++v) {
        hn::Store(Units::Zip(d_score[0][v], d_score[1][v]), d,
                  d_score_keys_ + j / 2 * kRowBlock + first + v * kLanes);
      }
    }
  }

  // dv += P^T dout and dk += dU^T q, for tiles of keys over the rows that keep some of them.
  void AddKeyGradients() {
    const int64_t count = keys_.end - keys_.begin;
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    int64_t row_begin = 0, row_end = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = count * t / tiles, end = count * (t + 1) / tiles;
      while (row_begin < rows_ && info_.key_end[row_begin] <= keys_.begin + begin) ++row_begin;
      while (row_end < rows_ && info_.key_begin[row_end] < keys_.begin + end) ++row_end;
      if (row_begin >= row_end) continue;
      const int64_t first = row_begin / Units::kPerUnit;
      const int64_t depth = UnitsFor<Units>(row_end) - first;
      for (int64_t c = 0; c < dim_; c += kPanel) {
        const int64_t columns = std::min(kPanel, dim_ - c);
        const int64_t a = begin * kRowUnits + first;
        const int64_t b = c * kRowUnits + first * kPanel;
        MultiplyPanel<Order::kRows, Units>(end - begin, depth, weight_rows_ + a, kRowUnits,
                                           d_out_panels_ + b, columns,
                                           AddTile{dv_ + begin * stride_ + c, stride_});
        MultiplyPanel<Order::kRows, Units>(end - begin, depth, d_score_rows_ + a, kRowUnits,
                                           q_panels_ + b, columns,
                                           AddTile{dk_ + begin * stride_ + c, stride_});
      }
    }
  }

  // dq_sum = (or +=) dU k, for tiles of rows over the keys that they keep.
  void AddQueryGradients(bool is_first) {
    float* dq = dq_sum_ + row_begin_ * stride_;
    if (is_first) std::fill_n(dq, rows_ * stride_, 0.0f);
    const int64_t tiles = (rows_ + kTileRows - 1) / kTileRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows_ * t / tiles, end = rows_ * (t + 1) / tiles;
      const KeyRange keys = info_.Hull(begin, end, keys_);
      if (keys.empty()) continue;
      const int64_t skipped = (keys.begin - keys_.begin) / Units::kPerUnit;
      const int64_t depth = UnitsFor<Units>(keys.end - keys_.begin) - skipped;
      for (int64_t c = 0; c < dim_; c += kPanel) {
        MultiplyPanel<Order::kColumns, Units>(
            end - begin, depth, d_score_keys_ + skipped * kRowBlock + begin, kRowBlock,
            k_panels_ + c * kKeyUnits + skipped * kPanel, std::min(kPanel, dim_ - c),
            AddTile{dq + begin * stride_ + c, stride_});
      }
    }
  }

  void StoreQueryGradients() {
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = row_begin_ + r;
      StoreScaledRow(dq_sum_ + row * stride_, dim_, params_.options.softmax_scale,
                     ElementAt<T>(params_.dq, problem_.QueryRow(row), problem_.HeadOf(row)));
    }
  }

  // Until key block `previous` (-1: none) has been added to row block b. False when it never will.
  bool WaitFor(int64_t b, int64_t previous) const {
    while (progress_[b].load(std::memory_order_acquire) != previous) {
      if (Cancelled() || failed_.load(std::memory_order_relaxed)) return false;
      YieldThread();
    }
    return !Cancelled();
  }

  const Backward& params_;
  const Problem& problem_;
  int64_t key_block_;
  KeyRange keys_;
  int64_t dim_, stride_, columns_;
  int64_t depth_, depth_stride_;  // units of dim
  float* dq_sum_;
  std::atomic<int32_t>* progress_;
  const std::atomic<bool>& failed_;
  Workspace memory_;
  float *k_rows_, *v_rows_;          // [kKeyBlock][depth_stride]
  float *dk_, *dv_;                  // [kKeyBlock][stride]
  float* k_panels_;                  // [panels of dim][kKeyUnits][kPanel]
  float *q_panels_, *q_transposed_;  // [panels of dim][kRowUnits][kPanel], [panels][d][kPanel]
  float *d_out_panels_, *d_out_transposed_;
  float* staged_;                       // [kPanel][depth_stride]
  float *weights_, *d_scores_;          // [kKeyBlock][kScoreStride]
  float *weight_rows_, *d_score_rows_;  // [kKeyBlock][kRowUnits]
  float* d_score_keys_;                 // [kKeyUnits][kRowBlock]
  float *lse_log2_, *delta_;            // [kRowBlock]
  RowInfo info_;
  int64_t row_begin_ = 0, rows_ = 0;  // the current row block
};

}  // namespace HWY_NAMESPACE
}  // namespace varlen::varlen_attention
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_ATTENTION_BACKWARD_INL_H_
