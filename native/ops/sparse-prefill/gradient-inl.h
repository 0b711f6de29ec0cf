// One tile of query rows in the backward pass: the weights of the keys it keeps are computed again
// from softmax_lse, block by block as tile-inl.h gathers them. dq of the rows belongs to the tile;
// its parts of dk and dv go to sums that all tiles of a key/value head share. Included once per
// target.
#if defined(VARLEN_SPARSE_PREFILL_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_SPARSE_PREFILL_GRADIENT_INL_H_
#undef VARLEN_SPARSE_PREFILL_GRADIENT_INL_H_
#else
#define VARLEN_SPARSE_PREFILL_GRADIENT_INL_H_
#endif

#include "core/gradient-rows-inl.h"
#include "ops/sparse-prefill/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// `Units`: what one step of the products multiplies (gemm-inl.h). With units of two bfloat16, P and
// dU are rounded to bfloat16 for the products that they enter, as in dense attention and on a GPU.
template <class T, class Units>
class GradientTile {
 public:
  static constexpr int kExpDegree = std::is_same_v<T, float> ? 6 : 5;

  // `query_row`, `key_row`, `rows`: as TileBlock has them.
  GradientTile(const Backward& params, int64_t head, int64_t query_row, int64_t key_row,
               const int32_t* rows, int count)
      : params_(params),
        scores_{params.lengths.softmax_scale, params.lengths.softcap},
        kv_head_(head / (params.q.shape[1] / params.k.shape[1])),
        key_row_(key_row),
        rows_(count),
        dim_(params.q.shape[2]),
        value_dim_(params.v.shape[2]),
        stride_(RoundUp(dim_, kLanes)),
        value_stride_(RoundUp(value_dim_, kLanes)),
        depth_(UnitsFor<Units>(dim_)),
        value_depth_(UnitsFor<Units>(value_dim_)),
        memory_(QueryPanels<Units>::BytesFor(count, dim_) +
                QueryPanels<Units>::BytesFor(count, value_dim_) +
                Workspace::BytesFor<float>(kRowUnits * RoundUp(dim_, kPanel)) +
                Workspace::BytesFor<float>(kRowUnits * RoundUp(value_dim_, kPanel)) +
                2 * Workspace::BytesFor<float>(kTileRows) +
                Workspace::BytesFor<float>(kTileRows * stride_) +
                Workspace::BytesFor<float>(kKeyBlock * DepthStride(depth_)) +
                Workspace::BytesFor<float>(kKeyBlock * DepthStride(value_depth_)) +
                Workspace::BytesFor<float>(kKeyUnits * RoundUp(dim_, kPanel)) +
                Workspace::BytesFor<float>(kKeyBlock * stride_) +
                Workspace::BytesFor<float>(kKeyBlock * value_stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * kScoreStride) +
                (kPaired ? 3 : 0) * Workspace::BytesFor<float>(kKeyBlock * kRowUnits) +
                Workspace::BytesFor<float>(NumSegments(params) * kTileRows)),
        dq_(memory_.Take<float>(kTileRows * stride_)),
        keys_(memory_.Take<float>(kKeyBlock * DepthStride(depth_))),
        dk_(memory_.Take<float>(kKeyBlock * stride_)),
        key_panels_(memory_.Take<float>(kKeyUnits * RoundUp(dim_, kPanel))),
        values_(memory_.Take<float>(kKeyBlock * DepthStride(value_depth_))),
        dv_(memory_.Take<float>(kKeyBlock * value_stride_)),
        weights_(memory_.Take<float>(kKeyBlock * kScoreStride)),
        d_scores_(memory_.Take<float>(kKeyBlock * kScoreStride)),
        weight_rows_(kPaired ? memory_.Take<float>(kKeyBlock * kRowUnits) : weights_),
        d_score_rows_(kPaired ? memory_.Take<float>(kKeyBlock * kRowUnits) : d_scores_),
        d_score_keys_(kPaired ? memory_.Take<float>(kKeyUnits * kTileRows) : d_scores_),
        lse_log2_(memory_.Take<float>(kTileRows)),
        delta_(memory_.Take<float>(kTileRows)),
        query_panels_(memory_.Take<float>(kRowUnits * RoundUp(dim_, kPanel))),
        d_out_panels_(memory_.Take<float>(kRowUnits * RoundUp(value_dim_, kPanel))),
        segment_bias_(memory_.Take<float>(NumSegments(params) * kTileRows)) {
    const auto row_of = [&](const Tensor& tensor) {
      return [&tensor, rows, query_row, head](int64_t r) {
        return ElementAt<T>(tensor, query_row + rows[r], head);
      };
    };
    const auto q = row_of(params.q), d_out = row_of(params.d_out), out = row_of(params.out);
    queries_.template Pack<T>(memory_, count, dim_, scores_.query_scale(), q);
    d_outs_.template Pack<T>(memory_, count, value_dim_, 1.0f, d_out);
    PackRowsToPanels<Units>(count, q, dim_, query_panels_, kRowUnits);
    PackRowsToPanels<Units>(count, d_out, value_dim_, d_out_panels_, kRowUnits);
    // A row that keeps no key, and the rows of the last panel that are none: their weights are 0.
    std::fill_n(lse_log2_, kTileRows, kInfinity);
    std::fill_n(delta_, kTileRows, 0.0f);
    for (int r = 0; r < count; ++r) {
      const int64_t index = head * params.q.shape[0] + query_row + rows[r];
      const float lse = params.softmax_lse.data<float>()[index];
      if (lse != -kInfinity) lse_log2_[r] = lse * kLog2E;
      delta_[r] = DotRows(d_out(r), out(r), value_dim_) -
                  (params.d_lse ? params.d_lse.data<float>()[index] : 0.0f);
    }
    std::fill_n(dq_, kTileRows * stride_, 0.0f);
    if (params.segments) {
      const int64_t num_segments = params.segment_bias.shape[2];
      segments_ = params.segments.data<int32_t>() + key_row;
      for (int64_t g = 0; g < num_segments; ++g) {
        for (int r = 0; r < count; ++r) {
          const int64_t row = head * params.q.shape[0] + query_row + rows[r];
          segment_bias_[g * kTileRows + r] =
              params.segment_bias.data<float>()[row * num_segments + g] * kLog2E;
        }
        std::fill_n(segment_bias_ + g * kTileRows + count, kTileRows - count, 0.0f);
      }
    }
    bias_ = params.key_bias ? params.key_bias.data<float>() + head * params.k.shape[0] + key_row
                            : nullptr;
  }

  bool empty() const { return filled_ == 0; }
  // Key j of the sequence, kept by `rows`, ascending; true when the block is full.
  bool Take(int64_t j, RowBits rows) {
    column_[filled_] = j;
    kept_[filled_] = rows;
    return ++filled_ == kKeyBlock;
  }
  // Adds the block's part to dq and hands its parts of dk and dv over: add(j, dk, dv) per key, not
  // yet times the scale.
  template <class Add>
  void Flush(const Add& add) {
    if (filled_ == 0) return;
    Gather();
    for (int64_t p = 0; p < NumPanels(rows_); ++p) {
      if (rows_ - p * kPanel > kLanes) {
        Differentiate<2>(p);
      } else {
        Differentiate<1>(p);
      }
    }
    const int64_t row_units = UnitsFor<Units>(rows_);
    for (int64_t c = 0; c < dim_; c += kPanel) {
      const int64_t columns = std::min(kPanel, dim_ - c);
      MultiplyPanel<Order::kColumns, Units>(rows_, UnitsFor<Units>(filled_), d_score_keys_,
                                            kTileRows, key_panels_ + c * kKeyUnits, columns,
                                            AddTile{dq_ + c, stride_});
      MultiplyPanel<Order::kRows, Units>(filled_, row_units, d_score_rows_, kRowUnits,
                                         query_panels_ + c * kRowUnits, columns,
                                         StoreTile{dk_ + c, stride_});
    }
    for (int64_t c = 0; c < value_dim_; c += kPanel) {
      MultiplyPanel<Order::kRows, Units>(
          filled_, row_units, weight_rows_, kRowUnits, d_out_panels_ + c * kRowUnits,
          std::min(kPanel, value_dim_ - c), StoreTile{dv_ + c, value_stride_});
    }
    for (int64_t c = 0; c < filled_; ++c) {
      add(column_[c], dk_ + c * stride_, dv_ + c * value_stride_);
    }
    filled_ = 0;
  }

  const float* dq(int64_t r) const { return dq_ + r * stride_; }  // not yet times the scale

 private:
  static constexpr bool kPaired = Units::kPerUnit == 2;
  static constexpr int64_t kKeyUnits = kKeyBlock / Units::kPerUnit;
  static constexpr int64_t kRowUnits = kTileRows / Units::kPerUnit;
  // Scores are kept in float32 for the whole tile, or, if they are rounded to units of their own,
  // for one panel at a time.
  static constexpr int64_t kScoreStride = kPaired ? kPanel : kTileRows;

  static constexpr int64_t DepthStride(int64_t depth) { return RoundUp(depth, kLanes); }
  static int64_t NumSegments(const Backward& params) {
    return params.segments ? params.segment_bias.shape[2] : 0;
  }

  void Gather() {
    const auto key = [&](int64_t c) {
      return ElementAt<T>(params_.k, key_row_ + column_[c], kv_head_);
    };
    const auto value = [&](int64_t c) {
      return ElementAt<T>(params_.v, key_row_ + column_[c], kv_head_);
    };
    for (int64_t c = 0; c < filled_; ++c) {
      if (c + kPrefetchRows < filled_) {
        PrefetchRow(key(c + kPrefetchRows), dim_);
        PrefetchRow(value(c + kPrefetchRows), value_dim_);
      }
      PackRow<Units>(key(c), dim_, keys_ + c * DepthStride(depth_), DepthStride(depth_));
      PackRow<Units>(value(c), value_dim_, values_ + c * DepthStride(value_depth_),
                     DepthStride(value_depth_));
    }
    PackRowsToPanels<Units>(filled_, key, dim_, key_panels_, kKeyUnits);
  }

  // P and dU of one panel of rows, [key][row].
  template <int kVectors>
  void Differentiate(int64_t p) {
    const int64_t first = p * kPanel;
    const int64_t column = kPaired ? 0 : first;
    float *weights = weights_ + column, *d_scores = d_scores_ + column;
    const auto score = [&](auto finish) HWY_ATTR {
      MultiplyPanel<Order::kRows, Units>(filled_, depth_, keys_, DepthStride(depth_),
                                         queries_.Panel(p), kVectors * kLanes, finish);
    };
    if constexpr (kPaired) {
      score(ScaleTile{weights, kScoreStride, scores_.query_scale()});
    } else {
      score(StoreTile{weights, kScoreStride});
    }
    MultiplyPanel<Order::kRows, Units>(filled_, value_depth_, values_, DepthStride(value_depth_),
                                       d_outs_.Panel(p), kVectors * kLanes,
                                       StoreTile{d_scores, kScoreStride});
    const Floats d;
    const Vector cap = hn::Set(d, scores_.cap_log2()), one = hn::Set(d, 1.0f);
    const RowBits all = FirstRows(static_cast<int>(std::min(kPanel, rows_ - first)));
    // A unit may reach one row beyond the last: its weight must be 0 whatever the key holds.
    const RowBits unmasked = kPaired ? FirstRows(static_cast<int>(kPanel)) : all;
    for (int64_t c = 0; c < filled_; ++c) {
      const RowBits kept = (kept_[c] >> first) & all;
      for (int v = 0; v < kVectors; ++v) {
        float* weight_at = weights + c * kScoreStride + v * kLanes;
        float* d_score_at = d_scores + c * kScoreStride + v * kLanes;
        Vector score = hn::LoadU(d, weight_at), slope = one;
        if (scores_.capped()) {
          const Vector tanh = Tanh(score);
          slope = hn::NegMulAdd(tanh, tanh, one);
          score = hn::Mul(tanh, cap);
        }
        if (bias_ != nullptr) score = hn::Add(score, hn::Set(d, bias_[column_[c]] * kLog2E));
        if (const int32_t g = segments_ == nullptr ? -1 : segments_[column_[c]]; g >= 0) {
          score = hn::Add(score, hn::LoadU(d, segment_bias_ + g * kTileRows + first + v * kLanes));
        }
        const Vector row_lse = hn::LoadU(d, lse_log2_ + first + v * kLanes);
        const Vector row_delta = hn::LoadU(d, delta_ + first + v * kLanes);
        Vector weight = Exp2<kExpDegree>(hn::Sub(score, row_lse));
        Vector d_score =
            hn::Mul(hn::Mul(weight, slope), hn::Sub(hn::LoadU(d, d_score_at), row_delta));
        if (kept != unmasked) {
          const auto lanes = LanesOf(kept, v);
          weight = hn::IfThenElseZero(lanes, weight);
          d_score = hn::IfThenElseZero(lanes, d_score);
        }
        hn::StoreU(weight, d, weight_at);
        hn::StoreU(d_score, d, d_score_at);
      }
    }
    if constexpr (kPaired) RoundScores<kVectors>(first);
  }

  // The panel's P and dU as the units of the products that follow: of rows for dv and dk, of keys
  // for dq.
  template <int kVectors>
  void RoundScores(int64_t first) {
    const Floats d;
    const auto load = [&](const float* scores, int64_t c, int v) HWY_ATTR {
      return v < kVectors && c < filled_ ? hn::LoadU(d, scores + c * kScoreStride + v * kLanes)
                                         : hn::Zero(d);
    };
    for (int64_t c = 0; c < filled_; c += 2) {
      Vector d_score[2][2];
      for (int64_t k = 0; k < 2; ++k) {
        for (int v = 0; v < 2; ++v) d_score[k][v] = load(d_scores_, c + k, v);
        if (c + k == filled_) continue;
        const int64_t at = (c + k) * kRowUnits + first / 2;
        hn::StoreU(Units::Join(load(weights_, c + k, 0), load(weights_, c + k, 1)), d,
                   weight_rows_ + at);
        hn::StoreU(Units::Join(d_score[k][0], d_score[k][1]), d, d_score_rows_ + at);
      }
      for (int v = 0; v < kVectors; ++v) {
        hn::StoreU(Units::Zip(d_score[0][v], d_score[1][v]), d,
                   d_score_keys_ + c / 2 * kTileRows + first + v * kLanes);
      }
    }
  }

  const Backward& params_;
  Scores scores_;
  int64_t kv_head_, key_row_;
  int64_t rows_, dim_, value_dim_, stride_, value_stride_;
  int64_t depth_, value_depth_;  // units of dim and of value dim
  Workspace memory_;
  QueryPanels<Units> queries_, d_outs_;
  float* dq_;                           // [kTileRows][stride]
  float* keys_;                         // [kKeyBlock][units of dim]
  float* dk_;                           // [kKeyBlock][stride]
  float* key_panels_;                   // [panels of dim][kKeyUnits][kPanel]
  float* values_;                       // [kKeyBlock][units of value dim]
  float* dv_;                           // [kKeyBlock][value_stride]
  float *weights_, *d_scores_;          // [kKeyBlock][kScoreStride]
  float *weight_rows_, *d_score_rows_;  // [kKeyBlock][kRowUnits]
  float* d_score_keys_;                 // [kKeyUnits][kTileRows]
  float *lse_log2_, *delta_;            // [kTileRows]
  float* query_panels_;                 // [panels of dim][kRowUnits][kPanel]
  float* d_out_panels_;                 // [panels of value dim][kRowUnits][kPanel]
  float* segment_bias_;                 // [segments][kTileRows], base 2
  const float* bias_ = nullptr;
  const int32_t* segments_ = nullptr;
  int64_t filled_ = 0;
  int64_t column_[kKeyBlock];
  RowBits kept_[kKeyBlock];
};

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_SPARSE_PREFILL_GRADIENT_INL_H_
