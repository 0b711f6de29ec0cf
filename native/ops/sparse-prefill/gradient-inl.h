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

// All products in float32: a gradient is a sum over many rows, and bfloat16 weights would show.
template <class T>
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
        memory_(QueryPanels<FloatUnits>::BytesFor(count, dim_) +
                QueryPanels<FloatUnits>::BytesFor(count, value_dim_) +
                Workspace::BytesFor<float>(kTileRows * RoundUp(dim_, kPanel)) +
                Workspace::BytesFor<float>(kTileRows * RoundUp(value_dim_, kPanel)) +
                2 * Workspace::BytesFor<float>(kTileRows) +
                Workspace::BytesFor<float>(kTileRows * stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * stride_) +
                Workspace::BytesFor<float>(kKeyBlock * RoundUp(dim_, kPanel)) +
                2 * Workspace::BytesFor<float>(kKeyBlock * value_stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * kTileRows) +
                Workspace::BytesFor<float>(NumSegments(params) * kTileRows)),
        dq_(memory_.Take<float>(kTileRows * stride_)),
        keys_(memory_.Take<float>(kKeyBlock * stride_)),
        dk_(memory_.Take<float>(kKeyBlock * stride_)),
        key_panels_(memory_.Take<float>(kKeyBlock * RoundUp(dim_, kPanel))),
        values_(memory_.Take<float>(kKeyBlock * value_stride_)),
        dv_(memory_.Take<float>(kKeyBlock * value_stride_)),
        weights_(memory_.Take<float>(kKeyBlock * kTileRows)),
        d_scores_(memory_.Take<float>(kKeyBlock * kTileRows)),
        lse_log2_(memory_.Take<float>(kTileRows)),
        delta_(memory_.Take<float>(kTileRows)),
        query_panels_(memory_.Take<float>(kTileRows * RoundUp(dim_, kPanel))),
        d_out_panels_(memory_.Take<float>(kTileRows * RoundUp(value_dim_, kPanel))),
        segment_bias_(memory_.Take<float>(NumSegments(params) * kTileRows)) {
    const auto row_of = [&](const Tensor& tensor) {
      return [&tensor, rows, query_row, head](int64_t r) {
        return ElementAt<T>(tensor, query_row + rows[r], head);
      };
    };
    const auto q = row_of(params.q), d_out = row_of(params.d_out), out = row_of(params.out);
    queries_.Pack<T>(memory_, count, dim_, scores_.query_scale(), q);
    d_outs_.Pack<T>(memory_, count, value_dim_, 1.0f, d_out);
    PackRowsToPanels<FloatUnits>(count, q, dim_, query_panels_, kTileRows);
    PackRowsToPanels<FloatUnits>(count, d_out, value_dim_, d_out_panels_, kTileRows);
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
    for (int64_t c = 0; c < dim_; c += kPanel) {
      const int64_t columns = std::min(kPanel, dim_ - c);
      MultiplyPanel<Order::kColumns>(rows_, filled_, d_scores_, kTileRows,
                                     key_panels_ + c * kKeyBlock, columns,
                                     AddTile{dq_ + c, stride_});
      MultiplyPanel<Order::kRows>(filled_, rows_, d_scores_, kTileRows,
                                  query_panels_ + c * kTileRows, columns,
                                  StoreTile{dk_ + c, stride_});
    }
    for (int64_t c = 0; c < value_dim_; c += kPanel) {
      MultiplyPanel<Order::kRows>(filled_, rows_, weights_, kTileRows,
                                  d_out_panels_ + c * kTileRows, std::min(kPanel, value_dim_ - c),
                                  StoreTile{dv_ + c, value_stride_});
    }
    for (int64_t c = 0; c < filled_; ++c) {
      add(column_[c], dk_ + c * stride_, dv_ + c * value_stride_);
    }
    filled_ = 0;
  }

  const float* dq(int64_t r) const { return dq_ + r * stride_; }  // not yet times the scale

 private:
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
      WidenRow(key(c), dim_, 1.0f, keys_ + c * stride_, stride_);
      WidenRow(value(c), value_dim_, 1.0f, values_ + c * value_stride_, value_stride_);
    }
    PackRowsToPanels<FloatUnits>(filled_, key, dim_, key_panels_, kKeyBlock);
  }

  // P and dU of one panel of rows, [key][row].
  template <int kVectors>
  void Differentiate(int64_t p) {
    const int64_t first = p * kPanel;
    float *weights = weights_ + first, *d_scores = d_scores_ + first;
    MultiplyPanel<Order::kRows>(filled_, dim_, keys_, stride_, queries_.Panel(p), kVectors * kLanes,
                                StoreTile{weights, kTileRows});
    MultiplyPanel<Order::kRows>(filled_, value_dim_, values_, value_stride_, d_outs_.Panel(p),
                                kVectors * kLanes, StoreTile{d_scores, kTileRows});
    const Floats d;
    const Vector cap = hn::Set(d, scores_.cap_log2()), one = hn::Set(d, 1.0f);
    const RowBits all = FirstRows(static_cast<int>(std::min(kPanel, rows_ - first)));
    for (int64_t c = 0; c < filled_; ++c) {
      const RowBits kept = (kept_[c] >> first) & all;
      for (int v = 0; v < kVectors; ++v) {
        float* weight_at = weights + c * kTileRows + v * kLanes;
        float* d_score_at = d_scores + c * kTileRows + v * kLanes;
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
        if (kept != all) {
          const auto lanes = LanesOf(kept, v);
          weight = hn::IfThenElseZero(lanes, weight);
          d_score = hn::IfThenElseZero(lanes, d_score);
        }
        hn::StoreU(weight, d, weight_at);
        hn::StoreU(d_score, d, d_score_at);
      }
    }
  }

  const Backward& params_;
  Scores scores_;
  int64_t kv_head_, key_row_;
  int64_t rows_, dim_, value_dim_, stride_, value_stride_;
  Workspace memory_;
  QueryPanels<FloatUnits> queries_, d_outs_;
  float* dq_;                   // [kTileRows][stride]
  float *keys_, *dk_;           // [kKeyBlock][stride]
  float* key_panels_;           // [panels of dim][kKeyBlock][kPanel]
  float *values_, *dv_;         // [kKeyBlock][value_stride]
  float *weights_, *d_scores_;  // [kKeyBlock][kTileRows]
  float *lse_log2_, *delta_;    // [kTileRows]
  float* query_panels_;         // [panels of dim][kTileRows][kPanel]
  float* d_out_panels_;         // [panels of value dim][kTileRows][kPanel]
  float* segment_bias_;         // [segments][kTileRows], base 2
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
