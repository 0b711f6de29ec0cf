// Plain loops over the formulas of the header: one row at a time, float32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/varlen-attention/plan.h"
#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::varlen_attention {
namespace {

template <class T>
T* Row(const Tensor& t, int64_t row, int64_t head) {
  return t.data<T>() + row * t.strides[0] + head * t.strides[1];
}

template <class T>
void Widen(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

struct Scores {
  const Options& o;
  const Sequence& s;
  Band band;
  float slope;

  bool Keeps(int64_t i, int64_t j) const {
    return !o.key_end || i < o.key_end.data()[s.k_begin + j];
  }
  // s(i,j) and the derivative of the cap.
  float At(int64_t i, int64_t j, float dot, float* derivative) const {
    float u = dot * o.softmax_scale;
    *derivative = 1;
    if (o.softcap > 0) {
      const float t = std::tanh(u / o.softcap);
      *derivative = 1 - t * t;
      u = o.softcap * t;
    }
    return u - slope * static_cast<float>(std::abs(band.Position(i) - j));
  }
};

float SlopeOf(const Options& o, int64_t b, int64_t head, int64_t num_heads) {
  if (!o.alibi_slopes) return 0;
  const bool per_sequence = o.alibi_slopes.size() != num_heads;
  return o.alibi_slopes.data()[(per_sequence ? b * num_heads : 0) + head];
}

float Dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
void Zero(const Tensor& t, const std::vector<Gap>& gaps) {
  for (const Gap& gap : gaps)
    for (int64_t row = gap.begin; row < gap.end; ++row)
      for (int64_t h = 0; h < t.shape[1]; ++h)
        std::fill_n(Row<T>(t, row, h), t.shape[2], T(0.0f));
}

template <class T>
Status RunForward(const Forward& p) {
  const int64_t heads = p.q.shape[1], group = heads / p.k.shape[1], dim = p.q.shape[2];
  const int64_t total_q = p.q.shape[0];
  const Rows rows = RowsOf(p.options, total_q, p.k.shape[0]);
  float* lse = p.softmax_lse.data<float>();
  Zero<T>(p.out, rows.q_gaps);
  for (const Gap& gap : rows.q_gaps)
    for (int64_t h = 0; h < heads; ++h)
      std::fill(lse + h * total_q + gap.begin, lse + h * total_q + gap.end,
                -std::numeric_limits<float>::infinity());
  const int64_t pieces = static_cast<int64_t>(rows.sequences.size()) * heads;
  return ParallelFor(pieces, [&](int64_t piece, int) {
    const int64_t b = piece / heads, h = piece % heads;
    const Sequence& s = rows.sequences[static_cast<size_t>(b)];
    const Scores scores{p.options, s, Band(p.options, s), SlopeOf(p.options, b, h, heads)};
    std::vector<float> q(dim), k(dim), acc(dim), score(static_cast<size_t>(s.k_length));
    for (int64_t i = 0; i < s.q_length; ++i) {
      if (Cancelled()) return;
      Widen(Row<T>(p.q, s.q_begin + i, h), q.data(), dim);
      const KeyRange keys = scores.band.KeysOf(i);
      float max = -std::numeric_limits<float>::infinity();
      bool any = false;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        if (!scores.Keeps(i, j)) continue;
        any = true;
        Widen(Row<T>(p.k, s.k_begin + j, h / group), k.data(), dim);
        float unused;
        score[j] = scores.At(i, j, Dot(q.data(), k.data(), dim), &unused);
        max = std::max(max, score[j]);
      }
      std::fill(acc.begin(), acc.end(), 0.0f);
      float sum = 0;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        if (!scores.Keeps(i, j)) continue;
        const float weight = std::exp(score[j] - max);
        sum += weight;
        Widen(Row<T>(p.v, s.k_begin + j, h / group), k.data(), dim);
        for (int64_t d = 0; d < dim; ++d) acc[d] += weight * k[d];
      }
      T* out = Row<T>(p.out, s.q_begin + i, h);
      for (int64_t d = 0; d < dim; ++d) out[d] = T(any ? acc[d] / sum : 0.0f);
      lse[h * total_q + s.q_begin + i] =
          any ? max + std::log(sum) : -std::numeric_limits<float>::infinity();
    }
  });
}

template <class T>
Status RunBackward(const Backward& p) {
  const int64_t heads = p.q.shape[1], kv_heads = p.k.shape[1], group = heads / kv_heads;
  const int64_t dim = p.q.shape[2], total_q = p.q.shape[0];
  const Rows rows = RowsOf(p.options, total_q, p.k.shape[0]);
  Zero<T>(p.dq, rows.q_gaps);
  Zero<T>(p.dk, rows.k_gaps);
  Zero<T>(p.dv, rows.k_gaps);
  const float scale = p.options.softmax_scale;
  const int64_t pieces = static_cast<int64_t>(rows.sequences.size()) * kv_heads;
  return ParallelFor(pieces, [&](int64_t piece, int) {
    const int64_t b = piece / kv_heads, hk = piece % kv_heads;
    const Sequence& s = rows.sequences[static_cast<size_t>(b)];
    const size_t key_floats = static_cast<size_t>(s.k_length * dim);
    std::vector<float> k(key_floats), v(key_floats), dk(key_floats), dv(key_floats);
    for (int64_t j = 0; j < s.k_length; ++j) {
      Widen(Row<T>(p.k, s.k_begin + j, hk), &k[j * dim], dim);
      Widen(Row<T>(p.v, s.k_begin + j, hk), &v[j * dim], dim);
    }
    std::vector<float> q(dim), out(dim), d_out(dim), dq(dim);
    for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
      const Scores scores{p.options, s, Band(p.options, s), SlopeOf(p.options, b, h, heads)};
      for (int64_t i = 0; i < s.q_length; ++i) {
        if (Cancelled()) return;
        const int64_t row = s.q_begin + i;
        Widen(Row<T>(p.q, row, h), q.data(), dim);
        Widen(Row<T>(p.out, row, h), out.data(), dim);
        Widen(Row<T>(p.d_out, row, h), d_out.data(), dim);
        const float lse = p.softmax_lse.data<float>()[h * total_q + row];
        const float d_lse = p.d_lse ? p.d_lse.data<float>()[h * total_q + row] : 0.0f;
        const float delta = Dot(d_out.data(), out.data(), dim) - d_lse;
        std::fill(dq.begin(), dq.end(), 0.0f);
        const KeyRange keys = scores.band.KeysOf(i);
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          if (!scores.Keeps(i, j)) continue;
          float derivative;
          const float score = scores.At(i, j, Dot(q.data(), &k[j * dim], dim), &derivative);
          const float weight = std::exp(score - lse);
          const float ds = weight * (Dot(d_out.data(), &v[j * dim], dim) - delta) * derivative;
          for (int64_t d = 0; d < dim; ++d) {
            dv[j * dim + d] += weight * d_out[d];
            dk[j * dim + d] += ds * q[d];
            dq[d] += ds * k[j * dim + d];
          }
        }
        T* to = Row<T>(p.dq, row, h);
        for (int64_t d = 0; d < dim; ++d) to[d] = T(dq[d] * scale);
      }
    }
    for (int64_t j = 0; j < s.k_length; ++j) {
      T* dk_row = Row<T>(p.dk, s.k_begin + j, hk);
      T* dv_row = Row<T>(p.dv, s.k_begin + j, hk);
      for (int64_t d = 0; d < dim; ++d) {
        dk_row[d] = T(dk[j * dim + d] * scale);
        dv_row[d] = T(dv[j * dim + d]);
      }
    }
  });
}

}  // namespace

Status RunCpu(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.q.dtype, "q", [&]<class Scalar>() { return RunForward<Scalar>(params); });
}
Status RunCpu(const Backward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.q.dtype, "q", [&]<class Scalar>() { return RunBackward<Scalar>(params); });
}

}  // namespace varlen::varlen_attention
