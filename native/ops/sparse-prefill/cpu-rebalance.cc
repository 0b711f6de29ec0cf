// The CPU implementation of Rebalance: one pass over the keys, as a run makes it, that keeps the
// partial result of every segment apart; a row's partial results are merged with their new weights.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse-prefill/cpu-rebalance.cc"
#include "hwy/foreach_target.h"
//
#include "ops/sparse-prefill/tile-inl.h"
//
#include "core/dispatch.h"
#include "ops/sparse-prefill/head.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// Tiles of rows of one head. Slashes of a grid have tiles of their own in a run, which would part a
// row's segments: here such a head is cut into consecutive rows.
struct Piece {
  int64_t sequence, head;
  const Head* rows;
  Tile tile;
  bool whole;  // of consecutive rows, all stages at once
};

// The partial results of one tile: a state per segment, the last for keys in none.
template <class T, class Units>
class SegmentedTile {
 public:
  SegmentedTile(const Rebalance& params, const Forward& forward, const Piece& piece)
      : params_(params),
        piece_(piece),
        query_row_(params.lengths.cu_seqlens_q.data()[piece.sequence]),
        key_row_(params.lengths.cu_seqlens_k.data()[piece.sequence]),
        num_segments_(params.shares.size()),
        count_(piece.tile.count) {
    if (piece.whole) {
      for (int r = 0; r < count_; ++r) rows_[r] = static_cast<int32_t>(piece.tile.begin + r);
    } else {
      piece.rows->RowsOf(piece.tile, rows_);
    }
    const int64_t columns = piece.rows->sequence().k_length;
    const int64_t stride = RoundUp(params.v.shape[2], kLanes);
    Workspace memory(
        ColumnSet::BytesFor(columns) + num_segments_ * TileState::BytesFor(count_, stride) +
        Workspace::BytesFor<double>(num_segments_) + Workspace::BytesFor<float>(stride));
    ColumnSet set(memory, columns);
    TileBlock<T, Units> block(forward, piece.head, query_row_, key_row_, rows_, count_);
    states_.assign(static_cast<size_t>(num_segments_) + 1, TileState{});
    states_.back() = block.state();
    const int32_t* segments = params.segments.data<int32_t>() + key_row_;
    int32_t current = -1;
    const auto take = [&](int64_t j, RowBits kept) HWY_ATTR {
      if (segments[j] != current) {
        current = segments[j];
        TileState& state = StateOf(current);
        if (state.max == nullptr) state = TileState::Empty(memory, count_, stride);
        block.Into(state);
      }
      block.Take(j, kept);
    };
    if (piece.whole) {
      piece.rows->ForColumnsOfRows(rows_, count_, /*lines=*/false, set, take);
    } else {
      piece.rows->ForColumns(piece.tile, /*lines=*/false, set, take);
    }
    block.Flush();
    mass_ = memory.Take<double>(num_segments_);
    float* merged = memory.Take<float>(stride);
    for (int r = 0; r < count_; ++r) MergeRow(r, stride, merged);
  }

 private:
  TileState& StateOf(int32_t segment) {
    return states_[static_cast<size_t>(segment < 0 ? num_segments_ : segment)];
  }

  void MergeRow(int r, int64_t stride, float* merged) {
    const int64_t row = query_row_ + rows_[r], total_q = params_.q.shape[0];
    float max = -kInfinity;
    for (const TileState& state : states_) {
      if (state.max != nullptr) max = std::max(max, state.max[r]);
    }
    // All scores NaN: the maximum is -inf too, but a sum is NaN and stays so.
    const float shift = max == -kInfinity ? 0.0f : max;
    double sum = 0;
    for (const TileState& state : states_) {
      if (state.max != nullptr) sum += double{std::exp2(state.max[r] - shift)} * state.sum[r];
    }
    for (int64_t g = 0; g < num_segments_; ++g) {
      const TileState& state = states_[static_cast<size_t>(g)];
      mass_[g] = state.max == nullptr || !(sum > 0)
                     ? 0.0
                     : double{std::exp2(state.max[r] - shift)} * state.sum[r] / sum;
    }
    float* bias =
        params_.segment_bias.data<float>() + (piece_.head * total_q + row) * num_segments_;
    FindBias(bias);
    const Floats d;
    std::fill_n(merged, stride, 0.0f);
    const bool empty = max == -kInfinity && sum == 0;
    for (int64_t g = 0; g <= num_segments_; ++g) {
      const TileState& state = states_[static_cast<size_t>(g)];
      if (state.max == nullptr || empty) continue;
      const double factor = g == num_segments_ ? 1 : std::exp(double{bias[g]});
      const Vector weight =
          hn::Set(d, static_cast<float>(factor * std::exp2(state.max[r] - shift) / sum));
      const float* out = state.out + r * stride;
      for (int64_t i = 0; i < stride; i += kLanes) {
        hn::StoreU(hn::MulAdd(hn::LoadU(d, out + i), weight, hn::LoadU(d, merged + i)), d,
                   merged + i);
      }
    }
    StoreRow(merged, params_.v.shape[2], ElementAt<T>(params_.out, row, piece_.head));
    params_.softmax_lse.data<float>()[piece_.head * total_q + row] =
        empty ? -kInfinity : max * kLn2 + static_cast<float>(std::log(sum));
  }

  // b_g of the header, from mass_. A segment without visible mass is left out, and shares count
  // among the others.
  void FindBias(float* bias) const {
    double all = 0, shares = 0;
    int64_t visible = 0;
    for (int64_t g = 0; g < num_segments_; ++g) {
      bias[g] = 0;
      if (!(mass_[g] > 0)) continue;
      ++visible;
      all += mass_[g];
      shares += params_.shares.data()[g];
    }
    if (visible < 2 || !(shares > 0)) return;
    const double strength = params_.strength;
    double moved = 0;
    for (int64_t g = 0; g < num_segments_; ++g) {
      if (!(mass_[g] > 0)) continue;
      const double target =
          (1 - strength) * mass_[g] + strength * all * params_.shares.data()[g] / shares;
      const double own =
          std::clamp(std::log(target / mass_[g]), -params_.max_bias, params_.max_bias);
      bias[g] = static_cast<float>(own);
      moved += mass_[g] * std::exp(own);
    }
    // Where a bias was cut off: the masses add up to `all` again.
    const auto rest = static_cast<float>(std::log(all / moved));
    for (int64_t g = 0; g < num_segments_; ++g) {
      if (mass_[g] > 0) bias[g] += rest;
    }
  }

  const Rebalance& params_;
  const Piece& piece_;
  int64_t query_row_, key_row_, num_segments_;
  int count_;
  int32_t rows_[kTileRows];
  std::vector<TileState> states_;
  double* mass_ = nullptr;  // [segments]
};

template <class T, class Units>
Status Attend(const Rebalance& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t num_seqs = plan.num_seqs(), num_heads = plan.num_heads();
  const int64_t total_q = params.q.shape[0];
  for (int64_t row = params.lengths.cu_seqlens_q.data()[num_seqs]; row < total_q; ++row) {
    for (int64_t head = 0; head < num_heads; ++head) {
      std::fill_n(ElementAt<T>(params.out, row, head), params.v.shape[2], T(0.0f));
      params.softmax_lse.data<float>()[head * total_q + row] = -kInfinity;
      std::fill_n(params.segment_bias.data<float>() + (head * total_q + row) * params.shares.size(),
                  params.shares.size(), 0.0f);
    }
  }
  std::vector<Head> heads(static_cast<size_t>(num_seqs * num_heads));
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < num_seqs * num_heads; ++i) {
    Head& head = heads[static_cast<size_t>(i)];
    status = head.Open(plan, i / num_heads, i % num_heads);
    if (!status.ok()) return status;
    if (!head.has_slashes()) {
      for (const Tile& tile : head.tiles()) {
        pieces.push_back({i / num_heads, i % num_heads, &head, tile, false});
      }
      continue;
    }
    const int64_t rows = head.sequence().q_length;
    for (int64_t begin = 0; begin < rows; begin += kTileRows) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(kTileRows, rows - begin));
      pieces.push_back(
          {i / num_heads, i % num_heads, &head, {0, Stage::kWhole, -1, count, begin, false}, true});
    }
  }
  Forward forward;
  forward.plan = params.plan;
  forward.q = params.q;
  forward.k = params.k;
  forward.v = params.v;
  forward.lengths = params.lengths;
  const auto num_pieces = static_cast<int64_t>(pieces.size());
  return ParallelFor(num_pieces, [&](int64_t i, int) {
    // The latest rows first: they have the most keys.
    if (!Cancelled()) {
      SegmentedTile<T, Units>(params, forward, pieces[static_cast<size_t>(num_pieces - 1 - i)]);
    }
  });
}

Status RunRebalance(const Rebalance& params) {
#if HWY_TARGET == HWY_AVX3
  if (params.q.dtype == DType::kBF16 && ActiveIsa() == Isa::kAvx512Bf16) {
    return Attend<bfloat16, Bfloat16Units>(params);
  }
#endif
  return DispatchDType<float, bfloat16, half>(
      params.q.dtype, "q", [&]<class Scalar>() { return Attend<Scalar, FloatUnits>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sparse_prefill {
namespace {
constexpr IsaTable<Status(const Rebalance&)> kRebalance = VARLEN_ISA_TABLE(RunRebalance);
}  // namespace

Status RunCpu(const Rebalance& params) { return kRebalance.Get()(params); }

}  // namespace varlen::sparse_prefill
#endif
