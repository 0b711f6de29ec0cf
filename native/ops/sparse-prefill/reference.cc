#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/op_reference.h"
#include "core/parallel.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// The formulas of the header as plain loops in double, and the patterns as yes or no for one pair:
// nothing here knows of tiles of rows, sets of columns or stages.
namespace varlen::sparse_prefill {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool IsIn(int64_t x, const int32_t* list, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    if (list[n] == x) return true;
  }
  return false;
}

// Row r of the chunk at position i meets the key at position j; `at` and `key` are their
// coordinates, which inside a pair of modalities are ranks.
struct Pair {
  const SequenceInfo& sequence;
  int64_t r, i, j, at, key;
  bool in_pair = false;
};

int64_t FloorDivide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Offset s brings the tile of `at` the columns [first of tile - s, last of tile - s].
bool OnSlash(const Pattern& p, int64_t at, int64_t key) {
  if (at < 0) return false;
  const int64_t first = FloorDivide(at, p.slash_tile) * p.slash_tile;
  const int64_t last = first + p.slash_tile - 1;
  for (int64_t n = 0; n < p.num_slashes; ++n) {
    if (key >= first - p.slashes[n] && key <= last - p.slashes[n]) return true;
  }
  return false;
}

int64_t CountUpTo(const std::vector<int32_t>& positions, int64_t x) {
  int64_t count = 0;
  for (int32_t position : positions) count += position <= x;
  return count;
}

bool Keeps(const Pattern& p, const Pair& pair);

bool KeepsVerticalSlash(const Pattern& p, const Pair& pair) {
  if (IsIn(pair.key, p.verticals, p.num_verticals)) return true;
  if (p.ranks == pair.in_pair) return OnSlash(p, pair.at, pair.key);
  if (!p.ranks) return OnSlash(p, pair.i, pair.j);
  const Modalities& m = *pair.sequence.modalities;
  const auto i = static_cast<size_t>(pair.i), j = static_cast<size_t>(pair.j);
  return m.of[i] == m.of[j] && OnSlash(p, m.rank[i], m.rank[j]);
}

bool BitAt(const int32_t* bits, int64_t index) {
  return (static_cast<uint32_t>(bits[index / 32]) >> (index % 32) & 1) != 0;
}

bool KeepsBlock(const Pattern& p, const Pair& pair) {
  const int64_t row = FloorDivide(pair.at, p.block_rows) - p.first_block;
  if (row < 0 || row >= p.num_row_blocks) return false;
  const int64_t column = pair.key / p.block_columns;
  return column < p.row_words * 32 && BitAt(p.bits + row * p.row_words, column);
}

bool KeepsMasked(const Pattern& p, const Pair& pair) {
  for (int64_t row = 0; row < p.num_row_blocks; ++row) {
    if (pair.r < p.row_starts[row] || pair.r >= p.row_starts[row + 1]) continue;
    for (int64_t e = p.pointers[row]; e < p.pointers[row + 1]; ++e) {
      const int64_t begin = p.column_starts[p.indices[e]], end = p.column_starts[p.indices[e] + 1];
      if (pair.key < begin || pair.key >= end) continue;
      return p.inner.empty() ||
             BitAt(p.bits, p.inner[static_cast<size_t>(e)] +
                               (pair.r - p.row_starts[row]) * (end - begin) + pair.key - begin);
    }
  }
  return false;
}

bool KeepsPair(const Pattern& p, const Pair& pair) {
  const Modalities& m = *pair.sequence.modalities;
  const size_t a = m.of[static_cast<size_t>(pair.i)], b = m.of[static_cast<size_t>(pair.j)];
  const auto& keys = m.positions[b];
  const int64_t visible =
      pair.sequence.causal ? CountUpTo(keys, pair.i) : static_cast<int64_t>(keys.size());
  if (visible == 0) return false;
  return Keeps(p.children[a * m.positions.size() + b],
               {pair.sequence, pair.r, pair.i, pair.j, visible - 1,
                m.rank[static_cast<size_t>(pair.j)], true});
}

bool Keeps(const Pattern& p, const Pair& pair) {
  const int64_t distance = pair.at - pair.key;
  switch (p.kind) {
    case Kind::kDense:
      return true;
    case Kind::kAShape:
      return pair.key < p.sink || distance < p.local;
    case Kind::kTriShape:
      return pair.key < p.sink || distance < p.local || pair.r >= pair.sequence.q_length - p.last;
    case Kind::kVerticalSlash:
      return KeepsVerticalSlash(p, pair);
    case Kind::kBlocks:
      return KeepsBlock(p, pair);
    case Kind::kBlockMask:
      return KeepsMasked(p, pair);
    case Kind::kGrid:
    case Kind::kCellGrid: {
      const Grid& g = p.grid;
      const int64_t cell = pair.at < 0 ? -1 : g.CellOf(pair.at);
      return pair.key < p.sink || distance < p.local ||
             (g.column_lines() && g.OnColumnLine(pair.key)) ||
             (g.row_lines() && pair.at >= 0 && g.OnRowLine(pair.at)) ||
             (g.slash_lines() && cell >= 0 && cell == g.CellOf(pair.key));
    }
    case Kind::kSfFixed:
      return pair.key / p.period == FloorDivide(pair.at, p.period) || pair.key % p.period == 0;
    case Kind::kQBoundary:
      return Keeps(p.children[pair.sequence.modalities->of[static_cast<size_t>(pair.i)]], pair);
    case Kind::kPairBoundary:
      return KeepsPair(p, pair);
    case Kind::kUnion:
      for (const Pattern& child : p.children) {
        if (Keeps(child, pair)) return true;
      }
      return false;
    default:
      return false;
  }
}

// What both passes read, of one (sequence, head).
struct Inputs {
  const Tensor &q, &k, &v, &key_bias;
  const Lengths& lengths;
  const Tensor &segments, &segment_bias;  // of Rebalance, or neither
};

double At(const Tensor& tensor, int64_t row, int64_t head, int64_t d) {
  return ReadDouble(tensor, row * tensor.strides[0] + head * tensor.strides[1] + d);
}

// Row r of a head: the keys it keeps and their probabilities.
struct Row {
  std::vector<int64_t> keys;
  std::vector<double> p, cap_slope;  // cap_slope: ds / du
  double lse = -kInfinity;

  Row(const Inputs& in, const Pattern& pattern, const SequenceInfo& s, int64_t b, int64_t head,
      int64_t r) {
    const int64_t kv_head = head / (in.q.shape[1] / in.k.shape[1]);
    const int64_t query = in.lengths.cu_seqlens_q.data()[b] + r;
    const int64_t first_k = in.lengths.cu_seqlens_k.data()[b];
    const double scale = in.lengths.softmax_scale, cap = in.lengths.softcap;
    const int64_t i = r + s.shift();
    double max = -kInfinity;
    const int64_t end = s.causal ? i + 1 : s.k_length;
    for (int64_t j = 0; j < end; ++j) {
      if (!Keeps(pattern, {s, r, i, j, i, j})) continue;
      double dot = 0;
      for (int64_t d = 0; d < in.q.shape[2]; ++d) {
        dot += At(in.q, query, head, d) * At(in.k, first_k + j, kv_head, d);
      }
      double score = scale * dot;
      const double tanh = cap > 0 ? std::tanh(score / cap) : 0;
      if (cap > 0) score = cap * tanh;
      if (in.key_bias) {
        score += double{in.key_bias.data<float>()[head * in.k.shape[0] + first_k + j]};
      }
      keys.push_back(j);
      p.push_back(score);
      cap_slope.push_back(1 - tanh * tanh);
      max = score > max ? score : max;
    }
    if (keys.empty()) return;
    double sum = 0;
    for (double score : p) sum += std::exp(score - max);
    lse = max + std::log(sum);
    for (double& score : p) score = std::exp(score - lse);
    if (!in.segments) return;
    for (size_t n = 0; n < keys.size(); ++n) {
      const int32_t g = in.segments.data<int32_t>()[first_k + keys[n]];
      if (g < 0) continue;
      const int64_t index = (head * in.q.shape[0] + query) * in.segment_bias.shape[2] + g;
      p[n] *= std::exp(ReadDouble(in.segment_bias, index));
    }
  }
};

// ln(a'_g / a_g) from the masses of one row's segments.
std::vector<double> BiasOf(const std::vector<double>& mass, const Rebalance& params) {
  std::vector<double> bias(mass.size(), 0.0);
  double all = 0, shares = 0;
  for (size_t g = 0; g < mass.size(); ++g) {
    if (!(mass[g] > 0)) continue;
    all += mass[g];
    shares += params.shares.data()[g];
  }
  if (!(shares > 0)) return bias;
  double moved = 0;
  for (size_t g = 0; g < mass.size(); ++g) {
    if (!(mass[g] > 0)) continue;
    const double target =
        (1 - params.strength) * mass[g] + params.strength * all * params.shares.data()[g] / shares;
    bias[g] = std::min(params.max_bias, std::max(-params.max_bias, std::log(target / mass[g])));
    moved += mass[g] * std::exp(bias[g]);
  }
  for (size_t g = 0; g < mass.size(); ++g) {
    if (mass[g] > 0) bias[g] += std::log(all / moved);
  }
  return bias;
}

}  // namespace

Status RunReference(const Forward& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t num_heads = params.q.shape[1], group = num_heads / params.k.shape[1];
  const int64_t value_dim = params.v.shape[2], total_q = params.q.shape[0];
  std::fill_n(params.out.data<double>(), params.out.size(), 0.0);
  std::fill_n(params.softmax_lse.data<double>(), params.softmax_lse.size(), -kInfinity);
  const Tensor none;
  const Inputs inputs{params.q, params.k, params.v, params.key_bias, params.lengths, none, none};

  for (int64_t piece = 0; piece < plan.num_seqs() * num_heads; ++piece) {
    const int64_t b = piece / num_heads, head = piece % num_heads;
    Pattern pattern;
    status = plan.Read(b, head, &pattern);
    if (!status.ok()) return status;
    const SequenceInfo& s = plan.sequence(b);
    const int64_t first_q = params.lengths.cu_seqlens_q.data()[b];
    const int64_t first_k = params.lengths.cu_seqlens_k.data()[b];
    status = ParallelFor(s.q_length, [&](int64_t r, int) {
      const Row row(inputs, pattern, s, b, head, r);
      double* out = params.out.data<double>() + ((first_q + r) * num_heads + head) * value_dim;
      for (size_t n = 0; n < row.keys.size(); ++n) {
        for (int64_t d = 0; d < value_dim; ++d) {
          out[d] += row.p[n] * At(params.v, first_k + row.keys[n], head / group, d);
        }
      }
      params.softmax_lse.data<double>()[head * total_q + first_q + r] = row.lse;
    });
    if (!status.ok()) return status;
  }
  return {};
}

Status RunReference(const Backward& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t num_heads = params.q.shape[1], group = num_heads / params.k.shape[1];
  const int64_t kv_heads = params.k.shape[1], total_q = params.q.shape[0];
  const int64_t dim = params.q.shape[2], value_dim = params.v.shape[2];
  for (const Tensor* gradient : {&params.dq, &params.dk, &params.dv}) {
    std::fill_n(gradient->data<double>(), gradient->size(), 0.0);
  }
  const Inputs inputs{params.q,       params.k,        params.v,           params.key_bias,
                      params.lengths, params.segments, params.segment_bias};
  const double scale = params.lengths.softmax_scale;
  for (int64_t piece = 0; piece < plan.num_seqs() * num_heads; ++piece) {
    const int64_t b = piece / num_heads, head = piece % num_heads, kv_head = head / group;
    Pattern pattern;
    status = plan.Read(b, head, &pattern);
    if (!status.ok()) return status;
    const SequenceInfo& s = plan.sequence(b);
    const int64_t first_k = params.lengths.cu_seqlens_k.data()[b];
    for (int64_t r = 0; r < s.q_length; ++r) {
      const int64_t query = params.lengths.cu_seqlens_q.data()[b] + r;
      const Row row(inputs, pattern, s, b, head, r);
      std::vector<double> dp(row.keys.size(), 0.0);
      double delta = params.d_lse ? -ReadDouble(params.d_lse, head * total_q + query) : 0.0;
      for (size_t n = 0; n < row.keys.size(); ++n) {
        for (int64_t d = 0; d < value_dim; ++d) {
          dp[n] +=
              At(params.d_out, query, head, d) * At(params.v, first_k + row.keys[n], kv_head, d);
        }
        delta += row.p[n] * dp[n];
      }
      double* dq = params.dq.data<double>() + (query * num_heads + head) * dim;
      for (size_t n = 0; n < row.keys.size(); ++n) {
        const int64_t key = first_k + row.keys[n];
        const double du = scale * row.p[n] * (dp[n] - delta) * row.cap_slope[n];
        double* dk = params.dk.data<double>() + (key * kv_heads + kv_head) * dim;
        double* dv = params.dv.data<double>() + (key * kv_heads + kv_head) * value_dim;
        for (int64_t d = 0; d < dim; ++d) {
          dq[d] += du * At(params.k, key, kv_head, d);
          dk[d] += du * At(params.q, query, head, d);
        }
        for (int64_t d = 0; d < value_dim; ++d) {
          dv[d] += row.p[n] * At(params.d_out, query, head, d);
        }
      }
    }
  }
  return {};
}

Status RunReference(const Rebalance& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t num_heads = params.q.shape[1], group = num_heads / params.k.shape[1];
  const int64_t value_dim = params.v.shape[2], total_q = params.q.shape[0];
  const int64_t num_segments = params.shares.size();
  std::fill_n(params.out.data<double>(), params.out.size(), 0.0);
  std::fill_n(params.softmax_lse.data<double>(), params.softmax_lse.size(), -kInfinity);
  std::fill_n(params.segment_bias.data<double>(), params.segment_bias.size(), 0.0);
  const Tensor none;
  const Inputs inputs{params.q, params.k, params.v, none, params.lengths, none, none};
  for (int64_t piece = 0; piece < plan.num_seqs() * num_heads; ++piece) {
    const int64_t b = piece / num_heads, head = piece % num_heads;
    Pattern pattern;
    status = plan.Read(b, head, &pattern);
    if (!status.ok()) return status;
    const int64_t first_k = params.lengths.cu_seqlens_k.data()[b];
    for (int64_t r = 0; r < plan.sequence(b).q_length; ++r) {
      const int64_t query = params.lengths.cu_seqlens_q.data()[b] + r;
      const Row row(inputs, pattern, plan.sequence(b), b, head, r);
      std::vector<double> mass(static_cast<size_t>(num_segments), 0.0);
      const auto segment = [&](size_t n) {
        return params.segments.data<int32_t>()[first_k + row.keys[n]];
      };
      for (size_t n = 0; n < row.keys.size(); ++n) {
        if (segment(n) >= 0) mass[static_cast<size_t>(segment(n))] += row.p[n];
      }
      const std::vector<double> bias = BiasOf(mass, params);
      double* out = params.out.data<double>() + (query * num_heads + head) * value_dim;
      for (size_t n = 0; n < row.keys.size(); ++n) {
        const int32_t g = segment(n);
        const double p = row.p[n] * (g < 0 ? 1 : std::exp(bias[static_cast<size_t>(g)]));
        for (int64_t d = 0; d < value_dim; ++d) {
          out[d] += p * At(params.v, first_k + row.keys[n], head / group, d);
        }
      }
      params.softmax_lse.data<double>()[head * total_q + query] = row.lse;
      std::copy(bias.begin(), bias.end(),
                params.segment_bias.data<double>() + (head * total_q + query) * num_segments);
    }
  }
  return {};
}

namespace {

// What row `at` of two results counts for in their mean, and the log-sum-exp of both.
struct MergeShares {
  double lse, first, second;
  MergeShares(const Tensor& lse1, const Tensor& lse2, int64_t at) {
    const double a = ReadDouble(lse1, at), b = ReadDouble(lse2, at), top = std::max(a, b);
    lse = top == -kInfinity ? top : top + std::log(std::exp(a - top) + std::exp(b - top));
    first = lse == -kInfinity ? 0 : std::exp(a - lse);
    second = lse == -kInfinity ? 0 : std::exp(b - lse);
  }
};

}  // namespace

Status RunReference(const Merge& params) {
  const int64_t rows = params.out1.shape[0], heads = params.out1.shape[1];
  const int64_t dim = params.out1.shape[2];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      const MergeShares shares(params.lse1, params.lse2, head * rows + row);
      params.softmax_lse.data<double>()[head * rows + row] = shares.lse;
      for (int64_t d = 0; d < dim; ++d) {
        params.out.data<double>()[(row * heads + head) * dim + d] =
            shares.first * At(params.out1, row, head, d) +
            shares.second * At(params.out2, row, head, d);
      }
    }
  }
  return {};
}

Status RunReference(const MergeBackward& params) {
  const int64_t rows = params.d_out.shape[0], heads = params.d_out.shape[1];
  const int64_t dim = params.d_out.shape[2];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = head * rows + row;
      const MergeShares shares(params.lse1, params.lse2, at);
      double apart = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double gradient = At(params.d_out, row, head, d);
        params.d_out1.data<double>()[(row * heads + head) * dim + d] = shares.first * gradient;
        params.d_out2.data<double>()[(row * heads + head) * dim + d] = shares.second * gradient;
        apart += gradient * (At(params.out1, row, head, d) - At(params.out2, row, head, d));
      }
      const double moved = shares.first * shares.second * apart;
      const double d_lse = params.d_lse ? ReadDouble(params.d_lse, at) : 0;
      params.d_lse1.data<double>()[at] = shares.first * d_lse + moved;
      params.d_lse2.data<double>()[at] = shares.second * d_lse - moved;
    }
  }
  return {};
}

}  // namespace varlen::sparse_prefill
