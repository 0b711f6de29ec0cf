// One tile of query rows, or two, against the keys they keep, wherever they stand: keys are
// gathered row by row into blocks of 128, so that a strided or listed key costs what a contiguous
// one does, and a block is full even when the plan's ranges are short. Included once per target.
#if defined(VARLEN_SPARSE_PREFILL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_SPARSE_PREFILL_TILE_INL_H_
#undef VARLEN_SPARSE_PREFILL_TILE_INL_H_
#else
#define VARLEN_SPARSE_PREFILL_TILE_INL_H_
#endif

#include <cmath>

#include "core/online-softmax-inl.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/sparse-prefill/column-set.h"
#include "ops/sparse-prefill/sparse-prefill.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

using namespace varlen::HWY_NAMESPACE;  // NOLINT

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Keys and values of a block (128 KiB in float32 at D = 128) stay in the second-level cache.
inline constexpr int64_t kKeyBlock = 128;
// A gathered row is asked for this many rows ahead of its turn.
inline constexpr int64_t kPrefetchRows = 6;

template <class T>
HWY_INLINE T* ElementAt(const Tensor& tensor, int64_t row, int64_t head) {
  return tensor.data<T>() + row * tensor.strides[0] + head * tensor.strides[1];
}

template <class T>
HWY_INLINE void PrefetchRow(const T* row, int64_t n) {
  const char* at = reinterpret_cast<const char*>(row);
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
}

// How a dot product becomes a score.
struct Scores {
  float scale, softcap;
  bool capped() const { return softcap > 0; }
  // What q is multiplied by: the dot product then is the base-2 score, or tanh's argument.
  float query_scale() const { return capped() ? scale / softcap : scale * kLog2E; }
  float cap_log2() const { return softcap * kLog2E; }
};

// The lanes of vector v of a panel whose rows are set in `rows`, the panel's own.
HWY_INLINE hn::Mask<Floats> LanesOf(RowBits rows, int v) {
  const auto lanes = static_cast<uint32_t>(rows >> (v * kLanes));
  uint8_t bits[8] = {};
  std::memcpy(bits, &lanes, sizeof(lanes));
  return hn::LoadMaskBits(Floats(), bits);
}

// Queries of up to 64 rows as panels [panel][unit of d][row of panel]. Float32 takes the scale in
// with it; bfloat16 would round the product, and leaves it to the scores.
template <class Units>
class QueryPanels {
 public:
  static int64_t BytesFor(int64_t rows, int64_t dim) {
    const int64_t stride = RoundUp(UnitsFor<Units>(dim), kLanes);
    return Workspace::BytesFor<float>(NumPanels(rows) * kPanel * stride) +
           Workspace::BytesFor<float>(kPanel * stride);
  }
  // row(r) is where query row r starts.
  template <class T, class Row>
  void Pack(Workspace& memory, int64_t rows, int64_t dim, float scale, const Row& row) {
    stride_ = RoundUp(UnitsFor<Units>(dim), kLanes);
    panels_ = memory.Take<float>(NumPanels(rows) * kPanel * stride_);
    float* staged = memory.Take<float>(kPanel * stride_);
    std::fill_n(staged, kPanel * stride_, 0.0f);
    for (int64_t p = 0; p < NumPanels(rows); ++p) {
      const int64_t height = std::min(kPanel, rows - p * kPanel);
      for (int64_t r = 0; r < height; ++r) {
        const T* from = row(p * kPanel + r);
        if constexpr (Units::kPerUnit == 1) {
          WidenRow(from, dim, scale, staged + r * stride_, stride_);
        } else {
          PackRow<Units>(from, dim, staged + r * stride_, stride_);
        }
      }
      TransposeToPanel(staged, stride_, RoundUp(UnitsFor<Units>(dim), 4), height,
                       panels_ + p * kPanel * stride_);
    }
  }
  const float* Panel(int64_t p) const { return panels_ + p * kPanel * stride_; }

 private:
  int64_t stride_ = 0;
  float* panels_ = nullptr;
};

// The running result of a tile's rows over the keys taken so far.
struct TileState {
  float *max, *sum;  // [rows, up to whole panels]; max in base 2
  float* out;        // [rows][out_stride], not yet divided by sum

  static int64_t BytesFor(int64_t rows, int64_t out_stride) {
    const int64_t padded = NumPanels(rows) * kPanel;
    return 2 * Workspace::BytesFor<float>(padded) + Workspace::BytesFor<float>(padded * out_stride);
  }
  // Without any keys.
  static TileState Empty(Workspace& memory, int64_t rows, int64_t out_stride) {
    const int64_t padded = NumPanels(rows) * kPanel;
    const TileState state{memory.Take<float>(padded), memory.Take<float>(padded),
                          memory.Take<float>(padded * out_stride)};
    std::fill_n(state.max, padded, -kInfinity);
    std::fill_n(state.sum, padded, 0.0f);
    std::fill_n(state.out, padded * out_stride, 0.0f);
    return state;
  }
};

// `Units`: what one step of the products multiplies (gemm-inl.h).
template <class T, class Units>
class TileBlock {
 public:
  static constexpr int kExpDegree = std::is_same_v<T, float> ? 6 : 5;
  static constexpr int64_t kKeyUnits = kKeyBlock / Units::kPerUnit;

  // `key_row` and `query_row` are rows of the packed tensors where the sequence starts; `rows` are
  // the tile's, relative to it: at most kTileRows, or twice as many, of which the first kTileRows
  // are one tile and the rest another.
  TileBlock(const Forward& params, int64_t head, int64_t query_row, int64_t key_row,
            const int32_t* rows, int count)
      : params_(params),
        scores_{params.lengths.softmax_scale, params.lengths.softcap},
        kv_head_(head / (params.q.shape[1] / params.k.shape[1])),
        key_row_(key_row),
        rows_(count),
        dim_(params.q.shape[2]),
        value_dim_(params.v.shape[2]),
        depth_(UnitsFor<Units>(dim_)),
        stride_(RoundUp(depth_, kLanes)),
        out_stride_(RoundUp(value_dim_, kLanes)),
        memory_(
            QueryPanels<Units>::BytesFor(count, dim_) + TileState::BytesFor(count, out_stride_) +
            Workspace::BytesFor<float>(kKeyBlock * stride_) +
            Workspace::BytesFor<float>(kKeyUnits * RoundUp(value_dim_, kPanel)) +
            Workspace::BytesFor<float>(kKeyBlock * kPanel) + Workspace::BytesFor<float>(kPanel)) {
    queries_.template Pack<T>(memory_, count, dim_, scores_.query_scale(), [&](int64_t r) {
      return ElementAt<T>(params.q, query_row + rows[r], head);
    });
    state_ = TileState::Empty(memory_, count, out_stride_);
    keys_ = memory_.Take<float>(kKeyBlock * stride_);
    values_ = memory_.Take<float>(kKeyUnits * RoundUp(value_dim_, kPanel));
    weights_ = memory_.Take<float>(kKeyBlock * kPanel);
    rescale_ = memory_.Take<float>(kPanel);
    bias_ = params.key_bias ? params.key_bias.data<float>() + head * params.k.shape[0] + key_row
                            : nullptr;
  }

  // Key j of the sequence, kept by `rows`. Keys come in ascending order.
  void Take(int64_t j, RowBits rows, RowBits rows_of_second = 0) {
    column_[filled_] = j;
    kept_[0][filled_] = rows;
    kept_[1][filled_] = rows_of_second;
    if (++filled_ == kKeyBlock) Flush();
  }
  // To be called after the last key.
  void Flush() {
    if (filled_ == 0) return;
    Gather();
    for (int64_t p = 0; p < NumPanels(rows_); ++p) {
      if (rows_ - p * kPanel > kLanes) {
        Panel<2>(p);
      } else {
        Panel<1>(p);
      }
    }
    filled_ = 0;
  }

  // Keys from here on are added to `state`, which the caller keeps.
  void Into(const TileState& state) {
    Flush();
    state_ = state;
  }

  const TileState& state() const { return state_; }
  const float* out(int64_t r) const { return state_.out + r * out_stride_; }
  int64_t out_stride() const { return out_stride_; }

 private:
  void Gather() {
    for (int64_t c = 0; c < filled_; ++c) {
      if (c + kPrefetchRows < filled_) {
        const int64_t ahead = key_row_ + column_[c + kPrefetchRows];
        PrefetchRow(ElementAt<T>(params_.k, ahead, kv_head_), dim_);
        PrefetchRow(ElementAt<T>(params_.v, ahead, kv_head_), value_dim_);
      }
      PackRow<Units>(ElementAt<T>(params_.k, key_row_ + column_[c], kv_head_), dim_,
                     keys_ + c * stride_, stride_);
    }
    const auto value = [&](int64_t c) {
      return ElementAt<T>(params_.v, key_row_ + column_[c], kv_head_);
    };
    PackRowsToPanels<Units>(filled_, value, value_dim_, values_, kKeyUnits);
  }

  template <int kVectors>
  void Panel(int64_t p) {
    const int64_t height = std::min(kPanel, rows_ - p * kPanel);
    const RowBits all = FirstRows(static_cast<int>(height));
    const RowBits* kept = kept_[p * kPanel / kTileRows];
    const int64_t skip = p * kPanel % kTileRows;
    const auto rows_of = [&](int64_t c) { return (kept[c] >> skip) & all; };
    int64_t begin = 0, end = filled_;
    while (begin < end && rows_of(begin) == 0) ++begin;
    while (begin < end && rows_of(end - 1) == 0) --end;
    if (begin == end) return;
    const auto score = [&](auto finish) HWY_ATTR {
      MultiplyPanel<Order::kRows, Units>(end - begin, depth_, keys_ + begin * stride_, stride_,
                                         queries_.Panel(p), kVectors * kLanes, finish);
    };
    if constexpr (Units::kPerUnit == 1) {
      score(StoreTile{weights_ + begin * kPanel, kPanel});
    } else {
      score(ScaleTile{weights_ + begin * kPanel, kPanel, scores_.query_scale()});
    }
    // Keys that all rows keep need no mask; most blocks have no others.
    int64_t plain_begin = begin, plain_end = end;
    if (scores_.capped() || bias_ != nullptr) {
      plain_end = begin;
    } else {
      while (plain_begin < end && rows_of(plain_begin) != all) ++plain_begin;
      plain_end = plain_begin;
      while (plain_end < end && rows_of(plain_end) == all) ++plain_end;
    }
    const Floats d;
    const Vector cap = hn::Set(d, scores_.cap_log2());
    const auto shape = [&](int v, int64_t c, Vector dot) HWY_ATTR {
      if (scores_.capped()) dot = hn::Mul(Tanh(dot), cap);
      if (bias_ != nullptr) dot = hn::Add(dot, hn::Set(d, bias_[column_[c]] * kLog2E));
      return hn::IfThenElse(LanesOf(rows_of(c), v), dot, hn::Set(d, -kInfinity));
    };
    const int64_t first = p * kPanel;
    SoftmaxPanel<kVectors, kExpDegree, Units>(weights_, begin, plain_begin, plain_end, end, shape,
                                              state_.max + first, state_.sum + first, rescale_);
    const int64_t skipped = begin / Units::kPerUnit, depth = UnitsFor<Units>(end) - skipped;
    for (int64_t c = 0; c < value_dim_; c += kPanel) {
      MultiplyPanel<Order::kColumns, Units>(
          height, depth, weights_ + skipped * kPanel, kPanel,
          values_ + c * kKeyUnits + skipped * kPanel, std::min(kPanel, value_dim_ - c),
          RescaleTile{state_.out + first * out_stride_ + c, out_stride_, rescale_});
    }
  }

  const Forward& params_;
  Scores scores_;
  int64_t kv_head_, key_row_;
  int64_t rows_, dim_, value_dim_;
  int64_t depth_, stride_;  // of keys, in units of dim
  int64_t out_stride_;
  Workspace memory_;
  QueryPanels<Units> queries_;
  TileState state_;
  float* keys_;     // [kKeyBlock][stride]
  float* values_;   // [panels of value dim][kKeyUnits][kPanel]
  float* weights_;  // scores [kKeyBlock][kPanel], then weights [kKeyUnits][kPanel]
  float* rescale_;  // [kPanel]
  const float* bias_;
  int64_t filled_ = 0;
  int64_t column_[kKeyBlock];
  RowBits kept_[2][kKeyBlock];  // per tile
};

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_SPARSE_PREFILL_TILE_INL_H_
