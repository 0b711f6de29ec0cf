// One task of the forward pass: a block of query rows against a range of keys, online softmax
// (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). Included once per target.
#if defined(VARLEN_ATTENTION_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_ATTENTION_FORWARD_INL_H_
#undef VARLEN_ATTENTION_FORWARD_INL_H_
#else
#define VARLEN_ATTENTION_FORWARD_INL_H_
#endif

#include <cmath>

#include "core/online-softmax-inl.h"
#include "core/parallel.h"
#include "ops/varlen-attention/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::varlen_attention {
namespace HWY_NAMESPACE {

// What a row has gathered so far: sum_j 2^(s_j - max) and the same sum weighted by v. Base 2.
struct Gathered {
  float* max;      // [rows]
  float* sum;      // [rows]
  float* out;      // [rows][out_stride], not yet divided by sum
  int64_t stride;  // of out
};

// `Units`: what one step of the products multiplies (gemm-inl.h). With units of two bfloat16 the
// weights are rounded to bfloat16 for the second product, as on a GPU; their sums are not.
template <class T, class Units>
class ForwardBlock {
 public:
  // bf16 and f16 round far more than degree 5 does.
  static constexpr int kExpDegree = std::is_same_v<T, float> ? 6 : 5;

  ForwardBlock(const Forward& params, const Problem& problem, int64_t row_begin, int64_t rows)
      : params_(params),
        problem_(problem),
        row_begin_(row_begin),
        rows_(rows),
        panels_(NumPanels(rows)),
        dim_(problem.head_dim),
        stride_(RoundUp(dim_, kLanes)),
        depth_(UnitsFor<Units>(dim_)),
        depth_stride_(RoundUp(depth_, kLanes)),
        memory_(RowInfo::BytesFor(panels_ * kPanel) +
                Workspace::BytesFor<float>(panels_ * kPanel * depth_stride_) +   // query panels
                2 * Workspace::BytesFor<float>(panels_ * kPanel) +               // max, sum
                Workspace::BytesFor<float>(panels_ * kPanel * stride_) +         // out
                Workspace::BytesFor<float>(kKeyBlock * depth_stride_) +          // keys
                Workspace::BytesFor<float>(kKeyUnits * RoundUp(dim_, kPanel)) +  // values
                Workspace::BytesFor<float>(kKeyBlock * kPanel) +                 // weights
                Workspace::BytesFor<float>(kPanel)),                             // rescale
        info_(memory_, panels_ * kPanel),
        queries_(memory_.Take<float>(panels_ * kPanel * depth_stride_)),
        gathered_{memory_.Take<float>(panels_ * kPanel), memory_.Take<float>(panels_ * kPanel),
                  memory_.Take<float>(panels_ * kPanel * stride_), stride_},
        keys_(memory_.Take<float>(kKeyBlock * depth_stride_)),
        values_(memory_.Take<float>(kKeyUnits * RoundUp(dim_, kPanel))),
        weights_(memory_.Take<float>(kKeyBlock * kPanel)),
        rescale_(memory_.Take<float>(kPanel)) {
    info_.Fill(problem, row_begin, rows);
    std::fill_n(gathered_.max, panels_ * kPanel, -kInfinity);
    std::fill_n(gathered_.sum, panels_ * kPanel, 0.0f);
    std::fill_n(gathered_.out, panels_ * kPanel * stride_, 0.0f);
    PackQueries();
  }

  // Takes in the keys of `range`. Blocks of keys start at multiples of kKeyBlock and units at
  // multiples of their size, whatever the rows: the bits of a row do not depend on the block it is
  // computed in.
  void Gather(KeyRange range) {
    const KeyRange hull = info_.Hull(0, rows_, range);
    for (int64_t begin = hull.begin - hull.begin % Units::kPerUnit;
         begin < hull.end && !Cancelled();) {
      const int64_t end = std::min(hull.end, (begin / kKeyBlock + 1) * kKeyBlock);
      const KeyRange block{begin, end};
      begin = end;
      if (problem_.tree() != nullptr && TreeIsDead(problem_.tree(), block, info_.token[0]))
        continue;
      PackKeys(block);
      for (int64_t p = 0; p < panels_; ++p) {
        if (rows_ - p * kPanel > kLanes) {
          GatherPanel<2>(p, block);
        } else {
          GatherPanel<1>(p, block);
        }
      }
    }
  }

  const Gathered& gathered() const { return gathered_; }

 private:
  static constexpr bool kPaired = Units::kPerUnit == 2;
  static constexpr int64_t kKeyUnits = kKeyBlock / Units::kPerUnit;

  int64_t RowsOfPanel(int64_t p) const { return std::min(kPanel, rows_ - p * kPanel); }
  float* QueryPanel(int64_t p) { return queries_ + p * kPanel * depth_stride_; }

  // [panel][d][row of panel], scaled if float32. The buffer of `out` stages one panel's rows.
  void PackQueries() {
    float* staged = gathered_.out;  // still zero beyond what is written, and zeroed again below
    for (int64_t p = 0; p < panels_; ++p) {
      for (int64_t r = 0; r < RowsOfPanel(p); ++r) {
        const int64_t row = row_begin_ + p * kPanel + r;
        const T* q = ElementAt<T>(params_.q, problem_.QueryRow(row), problem_.HeadOf(row));
        PackQueryRow<Units>(problem_, q, staged + r * depth_stride_, depth_stride_);
      }
      TransposeToPanel(staged, depth_stride_, RoundUp(depth_, 4), RowsOfPanel(p), QueryPanel(p));
    }
    std::fill_n(staged, kPanel * depth_stride_, 0.0f);
  }

  // Keys row by row, values in panels of columns; row 0 is the first key of the block.
  void PackKeys(KeyRange block) {
    const int64_t first = problem_.sequence.k_begin + block.begin;
    const int64_t count = block.end - block.begin;
    for (int64_t j = 0; j < count; ++j) {
      PackRow<Units>(ElementAt<T>(params_.k, first + j, problem_.kv_head), dim_,
                     keys_ + j * depth_stride_, depth_stride_);
    }
    PackRowsToPanels<Units>(
        count, [&](int64_t j) { return ElementAt<T>(params_.v, first + j, problem_.kv_head); },
        dim_, values_, kKeyUnits);
  }

  template <int kVectors>
  void GatherPanel(int64_t p, KeyRange block) {
    const int64_t first = p * kPanel, last = first + RowsOfPanel(p);
    const KeyRange keys = info_.Hull(first, last, block);
    if (keys.empty()) return;
    if (problem_.tree() != nullptr && TreeIsDead(problem_.tree(), keys, info_.token[first])) return;

    const int64_t skipped = keys.begin - block.begin;
    MultiplyPanel<Order::kRows, Units>(
        keys.end - keys.begin, depth_, keys_ + skipped * depth_stride_, depth_stride_,
        QueryPanel(p), kVectors * kLanes,
        ScoreTile<Units>(problem_, weights_ + skipped * kPanel, kPanel));
    Softmax<kVectors>(first, keys, block.begin);
    AddValues(first, last, block);
  }

  // Scores to weights 2^(s - max), in place, as units of keys; updates max and sum, and leaves in
  // rescale_ what the earlier sums are to be multiplied by.
  template <int kVectors>
  void Softmax(int64_t first, KeyRange keys, int64_t block_begin) {
    const Floats d;
    const PanelRows<kVectors> rows(problem_, info_, first);
    const KeyRange plain = PlainKeys(problem_, info_, first, first + kVectors * kLanes, keys);
    const auto shape = [&](int v, int64_t j, Vector dot) HWY_ATTR {
      Vector tanh;
      const Vector score = rows.Score(v, block_begin + j, dot, &tanh);
      return hn::IfThenElse(rows.Keep(v, block_begin + j), score, hn::Set(d, -kInfinity));
    };
    SoftmaxPanel<kVectors, kExpDegree, Units>(
        weights_, keys.begin - block_begin, plain.begin - block_begin, plain.end - block_begin,
        keys.end - block_begin, shape, gathered_.max + first, gathered_.sum + first, rescale_);
  }

  // out = out * rescale + weights^T values, for tiles of rows over the keys that they keep.
  void AddValues(int64_t first, int64_t last, KeyRange block) {
    const int64_t rows = last - first;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
      const KeyRange keys = info_.Hull(first + begin, first + end, block);
      if (keys.empty()) continue;
      const int64_t skipped = (keys.begin - block.begin) / Units::kPerUnit;
      const int64_t depth = UnitsFor<Units>(keys.end - block.begin) - skipped;
      for (int64_t c = 0; c < dim_; c += kPanel) {
        MultiplyPanel<Order::kColumns, Units>(
            end - begin, depth, weights_ + skipped * kPanel + begin, kPanel,
            values_ + c * kKeyUnits + skipped * kPanel, std::min(kPanel, dim_ - c),
            RescaleTile{gathered_.out + (first + begin) * stride_ + c, stride_, rescale_ + begin});
      }
    }
  }

  const Forward& params_;
  const Problem& problem_;
  int64_t row_begin_, rows_, panels_, dim_, stride_;
  int64_t depth_, depth_stride_;  // units of dim
  Workspace memory_;
  RowInfo info_;
  float* queries_;  // [panels][depth_stride][kPanel]
  Gathered gathered_;
  float* keys_;     // [kKeyBlock][depth_stride]
  float* values_;   // [panels of dim][kKeyUnits][kPanel]
  float* weights_;  // scores [kKeyBlock][kPanel], then weights [kKeyUnits][kPanel]
  float* rescale_;  // [kPanel]
};

// Divides by the sum and stores out and softmax_lse of one row. No key kept: 0 and -inf.
template <class T>
HWY_INLINE void FinishRow(const Forward& params, const Problem& problem, int64_t row, float max,
                          float sum, const float* gathered) {
  const Floats d;
  // All scores NaN: the maximum is -inf too, but the sum is NaN and stays so.
  const bool empty = max == -kInfinity && sum == 0;
  const int64_t packed_row = problem.QueryRow(row), head = problem.HeadOf(row);
  const int64_t dim = problem.head_dim;
  const Vector inverse = hn::Set(d, empty ? 0.0f : 1.0f / sum);
  T* out = ElementAt<T>(params.out, packed_row, head);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    StoreFromFloat(hn::Mul(hn::LoadU(d, gathered + i), inverse), out + i);
  }
  if (i < dim) StoreFirst(hn::Mul(hn::LoadU(d, gathered + i), inverse), out + i, dim - i);
  params.softmax_lse.data<float>()[head * params.q.shape[0] + packed_row] =
      empty ? -kInfinity : max * kLn2 + std::log(sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::varlen_attention
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_ATTENTION_FORWARD_INL_H_
