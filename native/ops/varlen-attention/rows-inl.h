// A block of query rows of one (sequence, key/value head): which keys each row keeps and how a dot
// product becomes a base-2 score. Shared by forward and backward; included once per target.
//
// Scores stand transposed, [key][row]: one vector holds one key for many rows. Row maxima and sums
// are then plain vector operations, and the same buffer serves as left operand of both products
// that use it, without a transpose. Rows of a group of query heads are packed (token, head), head
// fastest, so K and V are read once for all heads of the group.
#if defined(VARLEN_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_ATTENTION_ROWS_INL_H_
#undef VARLEN_ATTENTION_ROWS_INL_H_
#else
#define VARLEN_ATTENTION_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/gemm-inl.h"
#include "core/workspace.h"
#include "ops/varlen-attention/plan.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::varlen_attention {
namespace HWY_NAMESPACE {

// Everything of core that is compiled for this target.
using namespace varlen::HWY_NAMESPACE;  // NOLINT

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The keys of a sequence that this head group works on, and the constants of its scores.
struct Problem {
  const Options& options;
  const Sequence& sequence;
  int64_t sequence_index;
  int64_t kv_head;
  int64_t num_heads;
  int64_t group;     // query heads per key/value head
  int64_t head_dim;  // D

  int64_t rows() const { return sequence.q_length * group; }
  int64_t TokenOf(int64_t row) const { return row / group; }
  int64_t HeadOf(int64_t row) const { return kv_head * group + row % group; }
  // Row of a packed tensor.
  int64_t QueryRow(int64_t row) const { return sequence.q_begin + TokenOf(row); }

  bool capped() const { return options.softcap > 0; }
  // What q is multiplied by: the dot product then is the base-2 score, or tanh's argument.
  float query_scale() const {
    return capped() ? options.softmax_scale / options.softcap : options.softmax_scale * kLog2E;
  }
  // Relative to the sequence; null without a tree.
  const int32_t* tree() const {
    return options.key_end ? options.key_end.data() + sequence.k_begin : nullptr;
  }
  float SlopeLog2(int64_t head) const {
    const bool per_sequence = options.alibi_slopes.size() != num_heads;
    const int64_t index = (per_sequence ? sequence_index * num_heads : 0) + head;
    return options.alibi_slopes.data()[index] * kLog2E;
  }
};

template <class T>
HWY_INLINE T* ElementAt(const Tensor& tensor, int64_t row, int64_t head) {
  return tensor.data<T>() + row * tensor.strides[0] + head * tensor.strides[1];
}

// A query as units of depth. Float32 takes the scale in with it; bfloat16 would round the product,
// and leaves it to ScoreTile.
template <class Units, class T>
HWY_INLINE void PackQueryRow(const Problem& problem, const T* q, float* to, int64_t padded) {
  if constexpr (Units::kPerUnit == 1) {
    WidenRow(q, problem.head_dim, problem.query_scale(), to, padded);
  } else {
    PackRow<Units>(q, problem.head_dim, to, padded);
  }
}
template <class Units>
HWY_INLINE auto ScoreTile(const Problem& problem, float* scores, int64_t stride) {
  if constexpr (Units::kPerUnit == 1) {
    return StoreTile{scores, stride};
  } else {
    return ScaleTile{scores, stride, problem.query_scale()};
  }
}

// Per row, padded to whole panels by copies of the last row.
struct RowInfo {
  int32_t* token;
  int32_t* key_begin;
  int32_t* key_end;
  float* slope;  // log2(e) included; unset without alibi

  static int64_t BytesFor(int64_t rows) { return 4 * Workspace::BytesFor<int32_t>(rows); }
  RowInfo(Workspace& memory, int64_t rows)
      : token(memory.Take<int32_t>(rows)),
        key_begin(memory.Take<int32_t>(rows)),
        key_end(memory.Take<int32_t>(rows)),
        slope(memory.Take<float>(rows)) {}

  void Fill(const Problem& problem, int64_t row_begin, int64_t rows) {
    const Band band(problem.options, problem.sequence);
    const int64_t padded = RoundUp(rows, kPanel);
    for (int64_t r = 0; r < padded; ++r) {
      const int64_t row = row_begin + std::min(r, rows - 1);
      const KeyRange keys = band.KeysOf(problem.TokenOf(row));
      token[r] = static_cast<int32_t>(problem.TokenOf(row));
      key_begin[r] = static_cast<int32_t>(keys.begin);
      key_end[r] = static_cast<int32_t>(keys.end);
      if (problem.options.alibi_slopes) slope[r] = problem.SlopeLog2(problem.HeadOf(row));
    }
  }

  // Keys that some row of [begin, end) keeps, inside `block`; both ends of a row's keys only grow.
  KeyRange Hull(int64_t begin, int64_t end, KeyRange block) const {
    return {std::max<int64_t>(key_begin[begin], block.begin),
            std::min<int64_t>(key_end[end - 1], block.end)};
  }
  // Keys that the band keeps for every row of [begin, end), inside `keys`.
  KeyRange Core(int64_t begin, int64_t end, KeyRange keys) const {
    const int64_t core_begin = std::clamp<int64_t>(key_begin[end - 1], keys.begin, keys.end);
    return {core_begin, std::clamp<int64_t>(key_end[begin], core_begin, keys.end)};
  }
};

// Keys of a tree that some row from `token` on may still see.
HWY_INLINE bool TreeIsDead(const int32_t* tree, KeyRange keys, int64_t token) {
  int32_t last = 0;
  for (int64_t j = keys.begin; j < keys.end; ++j) last = std::max(last, tree[j]);
  return last <= token;
}
HWY_INLINE bool TreeKeepsAll(const int32_t* tree, KeyRange keys, int64_t token) {
  int32_t first = std::numeric_limits<int32_t>::max();
  for (int64_t j = keys.begin; j < keys.end; ++j) first = std::min(first, tree[j]);
  return first > token;
}

// The rows of one panel as vectors.
template <int kVectors>
struct PanelRows {
  using Ints = hn::RebindToSigned<Floats>;
  using IntVector = hn::Vec<Ints>;

  PanelRows(const Problem& problem, const RowInfo& rows, int64_t first)
      : tree(problem.tree()),
        capped(problem.capped()),
        sloped(static_cast<bool>(problem.options.alibi_slopes)),
        cap_log2(hn::Set(Floats(), problem.options.softcap * kLog2E)) {
    const Ints di;
    const int64_t shift = problem.sequence.k_length - problem.sequence.q_length;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = first + v * kLanes;
      token[v] = hn::LoadU(di, rows.token + at);
      begin[v] = hn::LoadU(di, rows.key_begin + at);
      end[v] = hn::LoadU(di, rows.key_end + at);
      position[v] = hn::Add(token[v], hn::Set(di, static_cast<int32_t>(shift)));
      slope[v] = sloped ? hn::LoadU(Floats(), rows.slope + at) : hn::Zero(Floats());
    }
  }

  // Base-2 score of key j from the dot product; `tanh` is the cap's, for its derivative.
  HWY_INLINE Vector Score(int v, int64_t j, Vector dot, Vector* tanh) const {
    if (capped) {
      *tanh = Tanh(dot);
      dot = hn::Mul(*tanh, cap_log2);
    }
    if (sloped) {
      const Ints di;
      const auto distance = hn::Abs(hn::Sub(position[v], hn::Set(di, static_cast<int32_t>(j))));
      dot = hn::NegMulAdd(slope[v], hn::ConvertTo(Floats(), distance), dot);
    }
    return dot;
  }
  HWY_INLINE hn::Mask<Floats> Keep(int v, int64_t j) const {
    const Ints di;
    const auto key = hn::Set(di, static_cast<int32_t>(j));
    auto keep = hn::AndNot(hn::Lt(key, begin[v]), hn::Lt(key, end[v]));
    if (tree != nullptr) keep = hn::And(keep, hn::Lt(token[v], hn::Set(di, tree[j])));
    return hn::RebindMask(Floats(), keep);
  }

  const int32_t* tree;
  bool capped, sloped;
  Vector cap_log2;
  IntVector token[kVectors], begin[kVectors], end[kVectors], position[kVectors];
  Vector slope[kVectors];
};

// The part of `keys` where a panel's rows need neither mask nor cap nor slope.
HWY_INLINE KeyRange PlainKeys(const Problem& problem, const RowInfo& rows, int64_t begin,
                              int64_t end, KeyRange keys) {
  if (problem.capped() || problem.options.alibi_slopes) return {keys.begin, keys.begin};
  if (problem.tree() != nullptr && !TreeKeepsAll(problem.tree(), keys, rows.token[end - 1])) {
    return {keys.begin, keys.begin};
  }
  return rows.Core(begin, end, keys);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::varlen_attention
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_ATTENTION_ROWS_INL_H_
