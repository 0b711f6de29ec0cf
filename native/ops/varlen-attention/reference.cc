#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "core/op_reference.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "ops/varlen-attention/varlen-attention.h"

// The formulas of the header as plain loops in double. The backward pass ignores the saved `out`
// and `softmax_lse` and computes both again, so that the rounding of a forward pass never enters
// the gradients it is the judge of.
namespace varlen::varlen_attention {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows first .. first + count - 1 of one head as doubles, [count, headDim].
std::vector<double> ReadRows(const Tensor& tensor, int64_t first, int64_t count, int64_t head) {
  const int64_t head_dim = tensor.shape[2];
  std::vector<double> rows(count * head_dim);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = (first + i) * tensor.strides[0] + head * tensor.strides[1];
    for (int64_t d = 0; d < head_dim; ++d) {
      rows[i * head_dim + d] = ReadDouble(tensor, start + d * tensor.strides[2]);
    }
  }
  return rows;
}

void WriteRows(const std::vector<double>& rows, const Tensor& tensor, int64_t first, int64_t head) {
  const int64_t head_dim = tensor.shape[2];
  const int64_t count = static_cast<int64_t>(rows.size()) / head_dim;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = (first + i) * tensor.strides[0] + head * tensor.strides[1];
    for (int64_t d = 0; d < head_dim; ++d) {
      tensor.data<double>()[start + d * tensor.strides[2]] = rows[i * head_dim + d];
    }
  }
}

void FillRows(const Tensor& tensor, double value) {
  const int64_t rows = tensor.shape[0], columns = tensor.rank == 3 ? tensor.shape[2] : 1;
  const int64_t middle = tensor.shape[1];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < middle; ++j) {
      for (int64_t d = 0; d < columns; ++d) {
        tensor.data<double>()[i * tensor.strides[0] + j * tensor.strides[1] +
                              (tensor.rank == 3 ? d * tensor.strides[2] : 0)] = value;
      }
    }
  }
}

// Four partial sums: a single chain of additions would wait on the adder's latency.
double Dot(const double* a, const double* b, int64_t n) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sums[0] += a[i] * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// y += factor * x
void AddScaled(double factor, const double* x, int64_t n, double* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// One sequence under one query head: its rows, lengths and masks.
struct Sequence {
  Sequence(const Options& options, int64_t sequence, int64_t head, int64_t num_heads)
      : options(options) {
    const int32_t* cu_q = options.cu_seqlens_q.data();
    const int32_t* cu_k = options.cu_seqlens_k ? options.cu_seqlens_k.data() : cu_q;
    first_q = cu_q[sequence];
    first_k = cu_k[sequence];
    length_q = options.seq_used_q ? options.seq_used_q.data()[sequence]
                                  : cu_q[sequence + 1] - cu_q[sequence];
    length_k = options.seq_used_k ? options.seq_used_k.data()[sequence]
                                  : cu_k[sequence + 1] - cu_k[sequence];
    if (options.alibi_slopes) {
      const bool per_sequence = options.alibi_slopes.size() != num_heads;
      slope = options.alibi_slopes.data()[per_sequence ? sequence * num_heads + head : head];
    }
  }

  int64_t Position(int64_t i) const { return i + length_k - length_q; }

  bool Keep(int64_t i, int64_t j) const {
    const int64_t pos = Position(i);
    if (options.causal && j > pos) return false;
    if (options.window_left >= 0 && pos - j > options.window_left) return false;
    if (options.window_right >= 0 && j - pos > options.window_right) return false;
    if (options.key_end && i >= options.key_end.data()[first_k + j]) return false;
    return true;
  }

  const Options& options;
  int64_t first_q, first_k;    // rows in the packed tensors
  int64_t length_q, length_k;  // tokens
  double slope = 0;
};

// Row i of P. Only the kept keys are listed: what a masked key holds is never read.
struct Probabilities {
  Probabilities(const Sequence& sequence, int64_t i, const double* q, const std::vector<double>& k,
                int64_t head_dim) {
    const Options& options = sequence.options;
    const double scale = options.softmax_scale, cap = options.softcap;
    double max = -kInfinity;
    for (int64_t j = 0; j < sequence.length_k; ++j) {
      if (!sequence.Keep(i, j)) continue;
      const double u = scale * Dot(q, &k[j * head_dim], head_dim);
      const double squashed = cap > 0 ? std::tanh(u / cap) : 0;
      const double s = (cap > 0 ? cap * squashed : u) -
                       sequence.slope * static_cast<double>(std::abs(sequence.Position(i) - j));
      keys.push_back(j);
      cap_slope.push_back(1 - squashed * squashed);
      p.push_back(s);
      max = s > max ? s : max;
    }
    if (keys.empty()) return;
    double sum = 0;
    for (double s : p) sum += std::exp(s - max);
    lse = max + std::log(sum);
    for (double& s : p) s = std::exp(s - lse);
  }

  std::vector<double> Output(const std::vector<double>& v, int64_t head_dim) const {
    std::vector<double> out(head_dim, 0.0);
    for (size_t n = 0; n < keys.size(); ++n) {
      AddScaled(p[n], &v[keys[n] * head_dim], head_dim, out.data());
    }
    return out;
  }

  std::vector<int64_t> keys;
  std::vector<double> p;
  std::vector<double> cap_slope;  // dS/dU
  double lse = -kInfinity;
};

int64_t NumSeqs(const Options& options) { return options.cu_seqlens_q.size() - 1; }

}  // namespace

Status RunReference(const Forward& params) {
  const int64_t num_heads = params.q.shape[1], head_dim = params.q.shape[2];
  FillRows(params.out, 0);
  FillRows(params.softmax_lse, -kInfinity);
  if (num_heads == 0) return {};
  const int64_t group = num_heads / params.k.shape[1];

  return ParallelFor(NumSeqs(params.options) * num_heads, [&](int64_t piece, int) {
    const int64_t head = piece % num_heads;
    const Sequence sequence(params.options, piece / num_heads, head, num_heads);
    const auto q = ReadRows(params.q, sequence.first_q, sequence.length_q, head);
    const auto k = ReadRows(params.k, sequence.first_k, sequence.length_k, head / group);
    const auto v = ReadRows(params.v, sequence.first_k, sequence.length_k, head / group);
    for (int64_t i = 0; i < sequence.length_q; ++i) {
      const Probabilities row(sequence, i, q.data() + i * head_dim, k, head_dim);
      WriteRows(row.Output(v, head_dim), params.out, sequence.first_q + i, head);
      params.softmax_lse.data<double>()[head * params.softmax_lse.strides[0] +
                                        (sequence.first_q + i) * params.softmax_lse.strides[1]] =
          row.lse;
    }
  });
}

Status RunReference(const Backward& params) {
  const int64_t num_heads = params.q.shape[1], head_dim = params.q.shape[2];
  FillRows(params.dq, 0);
  FillRows(params.dk, 0);
  FillRows(params.dv, 0);
  if (num_heads == 0) return {};
  const int64_t num_kv_heads = params.k.shape[1], group = num_heads / num_kv_heads;
  const double scale = params.options.softmax_scale;

  // A piece owns the dk and dv rows of its sequence and key/value head, so nothing is shared.
  return ParallelFor(NumSeqs(params.options) * num_kv_heads, [&](int64_t piece, int) {
    const int64_t b = piece / num_kv_heads, kv_head = piece % num_kv_heads;
    const Sequence slot(params.options, b, kv_head * group, num_heads);
    const auto k = ReadRows(params.k, slot.first_k, slot.length_k, kv_head);
    const auto v = ReadRows(params.v, slot.first_k, slot.length_k, kv_head);
    std::vector<double> dk(k.size(), 0.0), dv(v.size(), 0.0);

    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const Sequence sequence(params.options, b, head, num_heads);
      const auto q = ReadRows(params.q, sequence.first_q, sequence.length_q, head);
      const auto d_out = ReadRows(params.d_out, sequence.first_q, sequence.length_q, head);
      std::vector<double> dq(q.size(), 0.0);
      for (int64_t i = 0; i < sequence.length_q; ++i) {
        const double *q_row = q.data() + i * head_dim, *d_out_row = d_out.data() + i * head_dim;
        const Probabilities row(sequence, i, q_row, k, head_dim);
        double delta = Dot(d_out_row, row.Output(v, head_dim).data(), head_dim);
        if (params.d_lse) {
          delta -= ReadDouble(params.d_lse, head * params.d_lse.strides[0] +
                                                (sequence.first_q + i) * params.d_lse.strides[1]);
        }
        for (size_t n = 0; n < row.keys.size(); ++n) {
          const int64_t at = row.keys[n] * head_dim;
          const double dp = Dot(d_out_row, &v[at], head_dim);
          const double ds = row.p[n] * (dp - delta);
          const double du = ds * row.cap_slope[n];
          AddScaled(scale * du, &k[at], head_dim, &dq[i * head_dim]);
          AddScaled(scale * du, q_row, head_dim, &dk[at]);
          AddScaled(row.p[n], d_out_row, head_dim, &dv[at]);
        }
      }
      WriteRows(dq, params.dq, sequence.first_q, head);
    }
    WriteRows(dk, params.dk, slot.first_k, kv_head);
    WriteRows(dv, params.dv, slot.first_k, kv_head);
  });
}

}  // namespace varlen::varlen_attention
