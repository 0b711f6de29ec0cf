// probe.h, compiled per instruction set.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse-prefill/cpu-probe.cc"
#include "hwy/foreach_target.h"
//
#include "ops/sparse-prefill/tile-inl.h"
//
#include "core/dispatch.h"
#include "ops/sparse-prefill/probe.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// Base-2 scores of the probe's rows against all keys, block by block of 128 keys.
template <class T>
class ProbeScores {
 public:
  explicit ProbeScores(const Probe& probe)
      : probe_(probe),
        scores_{probe.params.lengths.softmax_scale, probe.params.lengths.softcap},
        dim_(probe.params.q.shape[2]),
        stride_(RoundUp(dim_, kLanes)),
        kv_head_(probe.head / (probe.params.q.shape[1] / probe.params.k.shape[1])),
        memory_(QueryPanels<FloatUnits>::BytesFor(probe.count, dim_) +
                Workspace::BytesFor<float>(kKeyBlock * stride_) +
                2 * Workspace::BytesFor<float>(kKeyBlock * kPanel)) {
    queries_.template Pack<T>(memory_, probe.count, dim_, scores_.query_scale(), [&](int64_t r) {
      return ElementAt<T>(probe.params.q, probe.query_row + probe.rows[r], probe.head);
    });
    keys_ = memory_.Take<float>(kKeyBlock * stride_);
    block_ = memory_.Take<float>(kKeyBlock * kPanel);
    copy_ = memory_.Take<float>(kKeyBlock * kPanel);
  }

  // Calls fn(panel, begin, end, scores) with scores[j - begin][kPanel] of keys [begin, end), -inf
  // where a row does not see the key, for every block and panel. fn may overwrite the scores.
  template <class Fn>
  void ForBlocks(const Fn& fn) {
    const SequenceInfo& s = probe_.sequence;
    const int64_t last = probe_.rows[probe_.count - 1] + s.shift();
    const int64_t keys = s.causal ? std::min(s.k_length, last + 1) : s.k_length;
    for (int64_t begin = 0; begin < keys && !Cancelled(); begin += kKeyBlock) {
      const int64_t end = std::min(keys, begin + kKeyBlock);
      for (int64_t j = begin; j < end; ++j) {
        WidenRow(ElementAt<T>(probe_.params.k, probe_.key_row + j, kv_head_), dim_, 1.0f,
                 keys_ + (j - begin) * stride_, stride_);
      }
      for (int64_t p = 0; p < NumPanels(probe_.count); ++p) {
        MultiplyPanel<Order::kRows>(end - begin, dim_, keys_, stride_, queries_.Panel(p), kPanel,
                                    StoreTile{block_, kPanel});
        Shape(p, begin, end);
        fn(p, begin, end, block_);
      }
    }
  }
  float* copy() { return copy_; }
  int64_t panels() const { return NumPanels(probe_.count); }

 private:
  void Shape(int64_t p, int64_t begin, int64_t end) {
    const SequenceInfo& s = probe_.sequence;
    const Floats d;
    if (scores_.capped()) {
      const Vector cap = hn::Set(d, scores_.softcap * kLog2E);
      for (int64_t i = 0; i < (end - begin) * kPanel; i += kLanes) {
        hn::Store(hn::Mul(Tanh(hn::Load(d, block_ + i)), cap), d, block_ + i);
      }
    }
    const int64_t height = std::min(kPanel, probe_.count - p * kPanel);
    for (int64_t r = 0; r < kPanel; ++r) {
      // Rows past the last are copies of nothing: they see no key.
      int64_t seen = r < height ? end : begin;
      if (s.causal && r < height) {
        seen = std::min<int64_t>(end, probe_.rows[p * kPanel + r] + s.shift() + 1);
      }
      for (int64_t j = std::max(seen, begin); j < end; ++j) {
        block_[(j - begin) * kPanel + r] = -kInfinity;
      }
    }
  }

  const Probe& probe_;
  Scores scores_;
  int64_t dim_, stride_, kv_head_;
  Workspace memory_;
  QueryPanels<FloatUnits> queries_;
  float *keys_, *block_, *copy_;
};

constexpr int64_t kMaxRows = 64 + 32;  // 64 rows, padded to panels

// max and sum of every row's scores.
struct RowSums {
  float max[kMaxRows], sum[kMaxRows];
  RowSums() {
    std::fill_n(max, kMaxRows, -kInfinity);
    std::fill_n(sum, kMaxRows, 0.0f);
  }
  // Overwrites the scores.
  void Take(int64_t p, int64_t keys, float* scores) {
    HWY_ALIGN float rescale[kPanel];
    const auto same = [](int, int64_t, Vector score) HWY_ATTR { return score; };
    SoftmaxPanel<2, 6, FloatUnits>(scores, 0, 0, keys, keys, same, max + p * kPanel,
                                   sum + p * kPanel, rescale);
  }
  float Log2(int64_t r) const { return max[r] + std::log2(sum[r]); }
};

template <class T>
int MassOf(const Probe& probe, const SlashCoordinates& coordinates, float* vertical, float* slash,
           int64_t num_offsets) {
  ProbeScores<T> scores(probe);
  RowSums rows;
  scores.ForBlocks([&](int64_t p, int64_t begin, int64_t end, float* block) {
    rows.Take(p, end - begin, block);
  });
  int non_finite = 0;
  HWY_ALIGN float shift[kMaxRows];
  for (int r = 0; r < kMaxRows; ++r) {
    const float log2 = rows.Log2(r);
    const bool usable = r < probe.count && std::isfinite(log2);
    if (r < probe.count && !usable) ++non_finite;
    shift[r] = usable ? log2 : kInfinity;  // 2^(s - inf) = 0
  }
  // Consecutive rows against positions: the offsets of one key are consecutive too.
  bool consecutive = coordinates.key_at == nullptr && slash != nullptr;
  for (int r = 1; r < probe.count && consecutive; ++r) {
    consecutive = coordinates.row_at[r] == coordinates.row_at[r - 1] + 1;
  }
  scores.ForBlocks([&](int64_t p, int64_t begin, int64_t end, float* block) HWY_ATTR {
    const Floats d;
    const int64_t height = std::min(kPanel, probe.count - p * kPanel);
    const Vector shifts[2] = {hn::LoadU(d, shift + p * kPanel),
                              hn::LoadU(d, shift + p * kPanel + kLanes)};
    for (int64_t j = begin; j < end; ++j) {
      float* at = block + (j - begin) * kPanel;
      Vector sum = hn::Zero(d);
      for (int v = 0; v < 2; ++v) {
        const Vector score = hn::Load(d, at + v * kLanes);
        // A usable row may still meet a NaN key only if its sum were NaN, so none is left here.
        const Vector finite = hn::IfThenZeroElse(hn::IsNaN(score), score);
        const Vector weight = Exp2<6>(
            hn::Sub(hn::IfThenElse(hn::IsNaN(score), hn::Set(d, -kInfinity), finite), shifts[v]));
        hn::Store(weight, d, at + v * kLanes);
        sum = hn::Add(sum, weight);
      }
      vertical[j] += hn::GetLane(hn::SumOfLanes(d, sum));
      if (slash == nullptr) continue;
      const int32_t key =
          coordinates.key_at == nullptr ? static_cast<int32_t>(j) : coordinates.key_at[j];
      if (key < 0) continue;
      const int64_t first = int64_t{coordinates.row_at[p * kPanel]} - key;
      if (consecutive && first >= 0 && first + kPanel <= num_offsets) {
        for (int v = 0; v < 2; ++v) {
          float* to = slash + first + v * kLanes;
          hn::StoreU(hn::Add(hn::LoadU(d, to), hn::Load(d, at + v * kLanes)), d, to);
        }
        continue;
      }
      for (int64_t r = 0; r < height; ++r) {
        const int64_t o = int64_t{coordinates.row_at[p * kPanel + r]} - key;
        if (o >= 0 && o < num_offsets) slash[o] += at[r];
      }
    }
  });
  return non_finite;
}

template <class T>
void EntropyOf(const Probe& probe, int64_t sink, float* entropy) {
  ProbeScores<T> scores(probe);
  RowSums rows;
  const auto drop_sink = [&](int64_t begin, int64_t end, float* block) {
    for (int64_t i = 0; i < (std::min(end, std::max(sink, begin)) - begin) * kPanel; ++i) {
      block[i] = -kInfinity;
    }
  };
  scores.ForBlocks([&](int64_t p, int64_t begin, int64_t end, float* block) {
    drop_sink(begin, end, block);
    rows.Take(p, end - begin, block);
  });
  double sums[kMaxRows] = {};
  scores.ForBlocks([&](int64_t p, int64_t begin, int64_t end, float* block) {
    drop_sink(begin, end, block);
    for (int64_t j = 0; j < end - begin; ++j) {
      for (int64_t r = 0; r < std::min(kPanel, probe.count - p * kPanel); ++r) {
        const float log2 = block[j * kPanel + r] - rows.Log2(p * kPanel + r);
        if (std::isfinite(log2)) sums[p * kPanel + r] -= std::exp2(double{log2}) * log2;
      }
    }
  });
  for (int r = 0; r < probe.count; ++r) entropy[r] = static_cast<float>(sums[r] * double{kLn2});
}

template <class T>
void RecallOf(const Probe& probe, const Head& head, double* recall) {
  const int64_t columns = probe.sequence.k_length;
  Workspace memory(ColumnSet::BytesFor(columns));
  ColumnSet set(memory, columns);
  head.ForColumnsOfRows(probe.rows, probe.count, /*lines=*/false, set, [](int64_t, RowBits) {});
  ProbeScores<T> scores(probe);
  RowSums full, kept;
  scores.ForBlocks([&](int64_t p, int64_t begin, int64_t end, float* block) HWY_ATTR {
    const Floats d;
    float* copy = scores.copy();
    for (int64_t j = begin; j < end; ++j) {
      const auto rows = static_cast<uint32_t>(set.At(j) >> (p * kPanel));
      for (int v = 0; v < 2; ++v) {
        const uint32_t lanes = rows >> (v * kLanes);
        uint8_t bits[8] = {};
        std::memcpy(bits, &lanes, sizeof(lanes));
        const int64_t at = (j - begin) * kPanel + v * kLanes;
        hn::Store(hn::IfThenElse(hn::LoadMaskBits(d, bits), hn::Load(d, block + at),
                                 hn::Set(d, -kInfinity)),
                  d, copy + at);
      }
    }
    full.Take(p, end - begin, block);
    kept.Take(p, end - begin, copy);
  });
  for (int r = 0; r < probe.count; ++r) {
    recall[r] = kept.sum[r] > 0 ? std::exp2(double{kept.Log2(r)} - full.Log2(r)) : 0.0;
  }
}

// Reduced rows of q or k as floats.
template <class T>
class ReducedRows {
 public:
  ReducedRows(const Probe& probe, const BlockScoring& scoring)
      : probe_(probe),
        scoring_(scoring),
        dim_(probe.params.q.shape[2]),
        stride_(RoundUp(dim_, kLanes)),
        kv_head_(probe.head / (probe.params.q.shape[1] / probe.params.k.shape[1])) {}

  int64_t depth() const { return scoring_.stride == 0 ? stride_ : stride_ * scoring_.stride; }
  int64_t query_size() const {
    return scoring_.stride == 0 ? scoring_.block_rows : scoring_.stride;
  }
  int64_t key_size() const {
    return scoring_.stride == 0 ? scoring_.block_columns : scoring_.stride;
  }

  void Query(int64_t t, float scale, float* to) const {
    const SequenceInfo& s = probe_.sequence;
    Reduce(t, query_size(), s.shift(), s.k_length, scale, /*reversed=*/true, to, [&](int64_t x) {
      return ElementAt<T>(probe_.params.q, probe_.query_row + x - s.shift(), probe_.head);
    });
  }
  void Key(int64_t t, float* to) const {
    Reduce(t, key_size(), 0, probe_.sequence.k_length, 1.0f, /*reversed=*/false, to,
           [&](int64_t x) { return ElementAt<T>(probe_.params.k, probe_.key_row + x, kv_head_); });
  }

 private:
  // Positions [t size, (t + 1) size) that lie in [low, high).
  template <class Row>
  void Reduce(int64_t t, int64_t size, int64_t low, int64_t high, float scale, bool reversed,
              float* to, const Row& row) const {
    const Floats d;
    std::fill_n(to, depth(), 0.0f);
    const int64_t begin = std::max(low, t * size), end = std::min(high, (t + 1) * size);
    if (begin >= end) return;
    if (scoring_.stride > 0) {
      for (int64_t x = begin; x < end; ++x) {
        const int64_t slot = reversed ? size - 1 - (x - t * size) : x - t * size;
        WidenRow(row(x), dim_, scale, to + slot * stride_, stride_);
      }
      return;
    }
    HWY_ALIGN float wide[kMaxHeadDim];
    for (int64_t x = begin; x < end; ++x) {
      WidenRow(row(x), dim_, scale / static_cast<float>(end - begin), wide, stride_);
      for (int64_t i = 0; i < stride_; i += kLanes) {
        hn::StoreU(hn::Add(hn::LoadU(d, to + i), hn::Load(d, wide + i)), d, to + i);
      }
    }
  }

  const Probe& probe_;
  const BlockScoring& scoring_;
  int64_t dim_, stride_, kv_head_;
};

template <class T>
void Score(const Probe& probe, const BlockScoring& scoring,
           const std::function<void(int64_t, const float*, int64_t)>& emit) {
  const SequenceInfo& s = probe.sequence;
  const ReducedRows<T> reduced(probe, scoring);
  const int64_t depth = reduced.depth(), q_size = reduced.query_size(), k_size = reduced.key_size();
  const int64_t first = s.shift() / q_size, last = (s.k_length + q_size - 1) / q_size;
  const int64_t num_keys = (s.k_length + k_size - 1) / k_size;
  const int64_t num_blocks = (s.k_length + scoring.block_columns - 1) / scoring.block_columns;
  const int64_t keys_per_block = scoring.block_columns / k_size;
  const int64_t rows_per_block = scoring.block_rows / q_size;
  constexpr int64_t kStaged = 32;  // reduced keys at a time
  Workspace memory(2 * Workspace::BytesFor<float>(kPanel * depth) +
                   Workspace::BytesFor<float>(kStaged * depth) +
                   Workspace::BytesFor<float>(num_keys * kPanel) +
                   Workspace::BytesFor<float>(num_blocks) + Workspace::BytesFor<float>(num_blocks));
  float* staged = memory.Take<float>(kPanel * depth);
  float* panel = memory.Take<float>(kPanel * depth);
  float* keys = memory.Take<float>(kStaged * depth);
  float* scores = memory.Take<float>(num_keys * kPanel);
  float* shares = memory.Take<float>(num_blocks);
  const float scale = probe.params.lengths.softmax_scale * kLog2E /
                      static_cast<float>(std::max<int64_t>(1, scoring.stride));
  std::fill_n(shares, num_blocks, 0.0f);
  const int64_t first_row = first / rows_per_block * rows_per_block;
  for (int64_t begin = first_row; begin < last && !Cancelled(); begin += kPanel) {
    const int64_t height = std::min(kPanel, last - begin);
    std::fill_n(staged, kPanel * depth, 0.0f);
    for (int64_t r = 0; r < height; ++r) reduced.Query(begin + r, scale, staged + r * depth);
    TransposeToPanel(staged, depth, depth, kPanel, panel);
    const int64_t newest = (begin + height) * q_size - 1;
    const int64_t visible = s.causal ? std::min(num_keys, newest / k_size + 1) : num_keys;
    for (int64_t t = 0; t < visible; t += kStaged) {
      const int64_t n = std::min(kStaged, visible - t);
      for (int64_t i = 0; i < n; ++i) reduced.Key(t + i, keys + i * depth);
      MultiplyPanel<Order::kRows>(n, depth, keys, depth, panel, kPanel,
                                  StoreTile{scores + t * kPanel, kPanel});
    }
    for (int64_t r = 0; r < height; ++r) {
      const int64_t row_last = (begin + r + 1) * q_size - 1;
      const int64_t seen = s.causal ? std::min(visible, row_last / k_size + 1) : visible;
      float max = -kInfinity;
      double sum = 0;
      for (int64_t t = 0; t < seen; ++t) max = std::max(max, scores[t * kPanel + r]);
      for (int64_t t = 0; t < seen; ++t) {
        float& score = scores[t * kPanel + r];
        score = std::exp2(score - max);
        sum += score;
      }
      const bool counts = (begin + r + 1) * q_size > s.shift();
      for (int64_t t = 0; t < seen && counts; ++t) {
        shares[t / keys_per_block] += static_cast<float>(scores[t * kPanel + r] / sum);
      }
      const int64_t row = begin + r, block = row / rows_per_block;
      if ((row + 1) % rows_per_block == 0 || row + 1 == last) {
        const int64_t block_last = std::min(s.k_length, (block + 1) * scoring.block_rows) - 1;
        const int64_t causal_blocks =
            s.causal ? std::min(num_blocks, block_last / scoring.block_columns + 1) : num_blocks;
        if (block_last >= s.shift()) emit(block, shares, causal_blocks);
        std::fill_n(shares, num_blocks, 0.0f);
      }
    }
  }
}

int Mass(const Probe& probe, const SlashCoordinates& coordinates, float* vertical, float* slash,
         int64_t num_offsets) {
  int non_finite = 0;
  (void)DispatchDType<float, bfloat16, half>(probe.params.q.dtype, "q", [&]<class T>() {
    non_finite = MassOf<T>(probe, coordinates, vertical, slash, num_offsets);
    return Status{};
  }).ok();
  return non_finite;
}
void Entropy(const Probe& probe, int64_t sink, float* entropy) {
  (void)DispatchDType<float, bfloat16, half>(probe.params.q.dtype, "q", [&]<class T>() {
    EntropyOf<T>(probe, sink, entropy);
    return Status{};
  }).ok();
}
void Recall(const Probe& probe, const Head& head, double* recall) {
  (void)DispatchDType<float, bfloat16, half>(probe.params.q.dtype, "q", [&]<class T>() {
    RecallOf<T>(probe, head, recall);
    return Status{};
  }).ok();
}
void Blocks(const Probe& probe, const BlockScoring& scoring,
            const std::function<void(int64_t, const float*, int64_t)>& emit) {
  (void)DispatchDType<float, bfloat16, half>(probe.params.q.dtype, "q", [&]<class T>() {
    Score<T>(probe, scoring, emit);
    return Status{};
  }).ok();
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sparse_prefill {
namespace {
using EmitBlocks = std::function<void(int64_t, const float*, int64_t)>;
constexpr IsaTable<int(const Probe&, const SlashCoordinates&, float*, float*, int64_t)> kMass =
    VARLEN_ISA_TABLE(Mass);
constexpr IsaTable<void(const Probe&, int64_t, float*)> kEntropy = VARLEN_ISA_TABLE(Entropy);
constexpr IsaTable<void(const Probe&, const Head&, double*)> kRecall = VARLEN_ISA_TABLE(Recall);
constexpr IsaTable<void(const Probe&, const BlockScoring&, const EmitBlocks&)> kBlocks =
    VARLEN_ISA_TABLE(Blocks);
}  // namespace

int ProbeMass(const Probe& probe, const SlashCoordinates& coordinates, float* vertical,
              float* slash, int64_t num_offsets) {
  return kMass.Get()(probe, coordinates, vertical, slash, num_offsets);
}
void ProbeEntropy(const Probe& probe, int64_t sink, float* entropy) {
  kEntropy.Get()(probe, sink, entropy);
}
void ProbeRecall(const Probe& probe, const Head& head, double* recall) {
  kRecall.Get()(probe, head, recall);
}
void ScoreBlocks(const Probe& probe, const BlockScoring& scoring, const EmitBlocks& emit) {
  kBlocks.Get()(probe, scoring, emit);
}

}  // namespace varlen::sparse_prefill
#endif
