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

#include "core/parallel.h"
#include "ops/varlen-attention/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::varlen_attention {
namespace HWY_NAMESPACE {

template <class T>
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
        dq_sum_(dq_sum),
        progress_(progress),
        failed_(failed),
        memory_(4 * Workspace::BytesFor<float>(kKeyBlock * stride_) +
                Workspace::BytesFor<float>(kKeyBlock * columns_) +
                4 * Workspace::BytesFor<float>(kRowBlock * columns_) +
                Workspace::BytesFor<float>(kPanel * stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * kRowBlock) +
                2 * Workspace::BytesFor<float>(kRowBlock) + RowInfo::BytesFor(kRowBlock)),
        k_rows_(memory_.Take<float>(kKeyBlock * stride_)),
        v_rows_(memory_.Take<float>(kKeyBlock * stride_)),
        dk_(memory_.Take<float>(kKeyBlock * stride_)),
        dv_(memory_.Take<float>(kKeyBlock * stride_)),
        k_panels_(memory_.Take<float>(kKeyBlock * columns_)),
        q_panels_(memory_.Take<float>(kRowBlock * columns_)),
        q_transposed_(memory_.Take<float>(kRowBlock * columns_)),
        d_out_panels_(memory_.Take<float>(kRowBlock * columns_)),
        d_out_transposed_(memory_.Take<float>(kRowBlock * columns_)),
        staged_(memory_.Take<float>(kPanel * stride_)),
        weights_(memory_.Take<float>(kKeyBlock * kRowBlock)),
        d_scores_(memory_.Take<float>(kKeyBlock * kRowBlock)),
        lse_log2_(memory_.Take<float>(kRowBlock)),
        delta_(memory_.Take<float>(kRowBlock)),
        info_(memory_, kRowBlock) {
    std::fill_n(dk_, kKeyBlock * stride_, 0.0f);
    std::fill_n(dv_, kKeyBlock * stride_, 0.0f);
    std::fill_n(staged_, kPanel * stride_, 0.0f);
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
  void PackKeys() {
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      const int64_t row = problem_.sequence.k_begin + j, at = j - keys_.begin;
      const T* k = ElementAt<T>(params_.k, row, problem_.kv_head);
      WidenRow(k, dim_, 1.0f, k_rows_ + at * stride_, stride_);
      WidenRowToPanels(k, dim_, k_panels_, kKeyBlock, at);
      WidenRow(ElementAt<T>(params_.v, row, problem_.kv_head), dim_, 1.0f, v_rows_ + at * stride_,
               stride_);
    }
  }

  void StoreKeys() {
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      const int64_t row = problem_.sequence.k_begin + j, at = j - keys_.begin;
      StoreScaled(dk_ + at * stride_, params_.options.softmax_scale,
                  ElementAt<T>(params_.dk, row, problem_.kv_head));
      StoreScaled(dv_ + at * stride_, 1.0f, ElementAt<T>(params_.dv, row, problem_.kv_head));
    }
  }
  void StoreScaled(const float* from, float scale, T* to) const {
    const Floats d;
    const Vector factor = hn::Set(d, scale);
    int64_t i = 0;
    for (; i + kLanes <= dim_; i += kLanes) {
      StoreFromFloat(hn::Mul(hn::LoadU(d, from + i), factor), to + i);
    }
    if (i < dim_) StoreFirst(hn::Mul(hn::LoadU(d, from + i), factor), to + i, dim_ - i);
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
    for (int64_t first = 0; first < rows_; first += kPanel) {
      const int64_t count = std::min(kPanel, rows_ - first);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = row_begin_ + first + r;
        const int64_t packed = problem_.QueryRow(row), head = problem_.HeadOf(row);
        const T* q = ElementAt<T>(params_.q, packed, head);
        WidenRowToPanels(q, dim_, q_panels_, kRowBlock, first + r);
        WidenRow(q, dim_, problem_.query_scale(), staged_ + r * stride_, stride_);
      }
      TransposeToPanel(staged_, stride_, RoundUp(dim_, 4), count, q_transposed_ + first * stride_);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = row_begin_ + first + r;
        const int64_t packed = problem_.QueryRow(row), head = problem_.HeadOf(row);
        const T* d_out = ElementAt<T>(params_.d_out, packed, head);
        WidenRowToPanels(d_out, dim_, d_out_panels_, kRowBlock, first + r);
        WidenRow(d_out, dim_, 1.0f, staged_ + r * stride_, stride_);
        PackRowScalars(first + r, packed, head, staged_ + r * stride_);
      }
      TransposeToPanel(staged_, stride_, RoundUp(dim_, 4), count,
                       d_out_transposed_ + first * stride_);
    }
    const int64_t padded = RoundUp(rows_, kPanel);
    std::fill(lse_log2_ + rows_, lse_log2_ + padded, kInfinity);
    std::fill(delta_ + rows_, delta_ + padded, 0.0f);
  }

  // lse in base 2, and delta = dout . out - dlse. A row that keeps no key has P = 0 everywhere:
  // its lse is never used unmasked, and +inf makes the weight 0 in any case.
  void PackRowScalars(int64_t r, int64_t packed, int64_t head, const float* d_out) {
    const Floats d;
    const int64_t index = head * params_.q.shape[0] + packed;
    const float lse = params_.softmax_lse.template data<float>()[index];
    lse_log2_[r] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    const T* out = ElementAt<T>(params_.out, packed, head);
    Vector sum = hn::Zero(d);
    int64_t i = 0;
    for (; i + kLanes <= dim_; i += kLanes) {
      sum = hn::MulAdd(hn::LoadU(d, d_out + i), LoadAsFloat(out + i), sum);
    }
    if (i < dim_) sum = hn::MulAdd(hn::LoadU(d, d_out + i), LoadFirst(out + i, dim_ - i), sum);
    const float d_lse = params_.d_lse ? params_.d_lse.template data<float>()[index] : 0.0f;
    delta_[r] = hn::GetLane(hn::SumOfLanes(d, sum)) - d_lse;
  }

  // P and dU of one panel of rows into weights_ and d_scores_, [key][row of block]; zeros for the
  // keys of the block that no row of the panel keeps.
  template <int kVectors>
  void Differentiate(int64_t first) {
    const Floats d;
    const int64_t last = std::min(first + kPanel, rows_);
    KeyRange live = info_.Hull(first, last, keys_);
    if (!live.empty() && problem_.tree() != nullptr &&
        TreeIsDead(problem_.tree(), live, info_.token[first])) {
      live.end = live.begin;
    }
    if (live.empty()) live = {keys_.begin, keys_.begin};
    ClearKeys<kVectors>(first, {keys_.begin, live.begin});
    ClearKeys<kVectors>(first, {live.end, keys_.end});
    if (live.empty()) return;

    const int64_t skipped = live.begin - keys_.begin, count = live.end - live.begin;
    float* weights = weights_ + skipped * kRowBlock + first;
    float* d_scores = d_scores_ + skipped * kRowBlock + first;
    MultiplyPanel<Order::kRows>(count, dim_, k_rows_ + skipped * stride_, stride_,
                                q_transposed_ + first * stride_, kVectors * kLanes,
                                StoreTile{weights, kRowBlock});
    MultiplyPanel<Order::kRows>(count, dim_, v_rows_ + skipped * stride_, stride_,
                                d_out_transposed_ + first * stride_, kVectors * kLanes,
                                StoreTile{d_scores, kRowBlock});

    const PanelRows<kVectors> rows(problem_, info_, first);
    const KeyRange plain = PlainKeys(problem_, info_, first, first + kVectors * kLanes, live);
    Vector lse[kVectors], delta[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      lse[v] = hn::LoadU(d, lse_log2_ + first + v * kLanes);
      delta[v] = hn::LoadU(d, delta_ + first + v * kLanes);
    }
    const auto masked = [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t j = begin; j < end; ++j) {
        for (int v = 0; v < kVectors; ++v) {
          float* p = weights_ + (j - keys_.begin) * kRowBlock + first + v * kLanes;
          float* ds = d_scores_ + (j - keys_.begin) * kRowBlock + first + v * kLanes;
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
    masked(live.begin, plain.begin);
    for (int64_t j = plain.begin; j < plain.end; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        float* p = weights_ + (j - keys_.begin) * kRowBlock + first + v * kLanes;
        float* ds = d_scores_ + (j - keys_.begin) * kRowBlock + first + v * kLanes;
        const Vector weight = Exp2<kExpDegree>(hn::Sub(hn::Load(d, p), lse[v]));
        hn::Store(weight, d, p);
        hn::Store(hn::Mul(weight, hn::Sub(hn::Load(d, ds), delta[v])), d, ds);
      }
    }
    masked(plain.end, live.end);
  }

  template <int kVectors>
  void ClearKeys(int64_t first, KeyRange keys) {
    const Floats d;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = (j - keys_.begin) * kRowBlock + first + v * kLanes;
        hn::Store(hn::Zero(d), d, weights_ + at);
        hn::Store(hn::Zero(d), d, d_scores_ + at);
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
      for (int64_t c = 0; c < dim_; c += kPanel) {
        const int64_t columns = std::min(kPanel, dim_ - c);
        const int64_t a = begin * kRowBlock + row_begin;
        const int64_t b = c * kRowBlock + row_begin * kPanel;
        MultiplyPanel<Order::kRows>(end - begin, row_end - row_begin, weights_ + a, kRowBlock,
                                    d_out_panels_ + b, columns,
                                    AddTile{dv_ + begin * stride_ + c, stride_});
        MultiplyPanel<Order::kRows>(end - begin, row_end - row_begin, d_scores_ + a, kRowBlock,
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
      const int64_t skipped = keys.begin - keys_.begin;
      for (int64_t c = 0; c < dim_; c += kPanel) {
        MultiplyPanel<Order::kColumns>(
            end - begin, keys.end - keys.begin, d_scores_ + skipped * kRowBlock + begin, kRowBlock,
            k_panels_ + c * kKeyBlock + skipped * kPanel, std::min(kPanel, dim_ - c),
            AddTile{dq + begin * stride_ + c, stride_});
      }
    }
  }

  void StoreQueryGradients() {
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = row_begin_ + r;
      StoreScaled(dq_sum_ + row * stride_, params_.options.softmax_scale,
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
  float* dq_sum_;
  std::atomic<int32_t>* progress_;
  const std::atomic<bool>& failed_;
  Workspace memory_;
  float *k_rows_, *v_rows_;          // [kKeyBlock][stride]
  float *dk_, *dv_;                  // [kKeyBlock][stride]
  float* k_panels_;                  // [panels of dim][kKeyBlock][kPanel]
  float *q_panels_, *q_transposed_;  // [panels of dim][kRowBlock][kPanel], [panels][d][kPanel]
  float *d_out_panels_, *d_out_transposed_;
  float* staged_;               // [kPanel][stride]
  float *weights_, *d_scores_;  // [kKeyBlock][kRowBlock]
  float *lse_log2_, *delta_;    // [kRowBlock]
  RowInfo info_;
  int64_t row_begin_ = 0, rows_ = 0;  // the current row block
};

}  // namespace HWY_NAMESPACE
}  // namespace varlen::varlen_attention
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_ATTENTION_BACKWARD_INL_H_
