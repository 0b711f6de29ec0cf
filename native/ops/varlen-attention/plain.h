#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "ops/varlen-attention/varlen-attention.h"

// Attention as a few lines of tensor code compute it: every intermediate tensor is stored in the
// inputs' dtype T, every product accumulates in float32, softmax is float32 inside. Its error is
// the yardstick of the accuracy tests (the rule of FlashAttention's hopper/test_flash_attn.py), so
// it rounds where that code would round and is as exact elsewhere as float32 allows.
namespace varlen::varlen_attention {

inline constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max();

template <class T>
float RoundTo(float value) {
  return static_cast<float>(T(value));
}

// One sequence under one query head, as float32 matrices whose entries are exact in T.
template <class T>
struct PlainHead {
  int64_t length_q, length_k, head_dim;
  float scale, softcap, slope;
  std::vector<float> q, k, v;                 // q is already multiplied by scale and rounded
  std::vector<float> p, cap_slope, out, lse;  // filled by Forward()
  std::vector<uint8_t> keep;                  // [length_q, length_k]

  static float Dot(const float* a, const float* b, int64_t n) {
    float sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    for (; i < n; ++i) sums[i % 8] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
           ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  }

  void Forward() {
    const float minus_infinity = -std::numeric_limits<float>::infinity();
    p.assign(length_q * length_k, 0.0f);
    cap_slope.assign(length_q * length_k, 1.0f);
    out.assign(length_q * head_dim, 0.0f);
    lse.assign(length_q, minus_infinity);
    for (int64_t i = 0; i < length_q; ++i) {
      float* row = p.data() + i * length_k;
      float max = minus_infinity;
      bool any = false;
      for (int64_t j = 0; j < length_k; ++j) {
        if (!keep[i * length_k + j]) continue;
        float s = RoundTo<T>(Dot(q.data() + i * head_dim, k.data() + j * head_dim, head_dim));
        if (softcap > 0) {
          const float squashed = RoundTo<T>(std::tanh(RoundTo<T>(s / softcap)));
          s = RoundTo<T>(softcap * squashed);
          cap_slope[i * length_k + j] = RoundTo<T>(1.0f - RoundTo<T>(squashed * squashed));
        }
        if (slope != 0) {
          const auto distance = static_cast<float>(std::abs(i + length_k - length_q - j));
          s = RoundTo<T>(s - RoundTo<T>(slope * distance));
        }
        row[j] = s;
        any = true;
        max = std::max(max, s);
      }
      if (!any) continue;
      float sum = 0;
      for (int64_t j = 0; j < length_k; ++j) {
        row[j] = keep[i * length_k + j] ? std::exp(row[j] - max) : 0.0f;
        sum += row[j];
      }
      lse[i] = max + std::log(sum);
      for (int64_t j = 0; j < length_k; ++j) {
        row[j] = RoundTo<T>(row[j] / sum);
        for (int64_t d = 0; d < head_dim; ++d)
          out[i * head_dim + d] += row[j] * v[j * head_dim + d];
      }
      for (int64_t d = 0; d < head_dim; ++d) {
        out[i * head_dim + d] = RoundTo<T>(out[i * head_dim + d]);
      }
    }
  }

  // Adds this head's dk and dv, each rounded first, to those of its group.
  std::vector<float> Backward(const std::vector<float>& d_out, const std::vector<float>& d_lse,
                              std::vector<float>& group_dk, std::vector<float>& group_dv) const {
    std::vector<float> dq(length_q * head_dim, 0.0f);
    std::vector<float> dk(length_k * head_dim, 0.0f), dv(length_k * head_dim, 0.0f);
    std::vector<float> dp(length_k);
    for (int64_t i = 0; i < length_q; ++i) {
      const float* row = p.data() + i * length_k;
      float delta = -d_lse[i];
      for (int64_t j = 0; j < length_k; ++j) {
        dp[j] = RoundTo<T>(Dot(d_out.data() + i * head_dim, v.data() + j * head_dim, head_dim));
        delta += row[j] * dp[j];
      }
      for (int64_t j = 0; j < length_k; ++j) {
        const float ds = RoundTo<T>(row[j] * (dp[j] - delta));
        const float du = softcap > 0 ? RoundTo<T>(ds * cap_slope[i * length_k + j]) : ds;
        for (int64_t d = 0; d < head_dim; ++d) {
          dq[i * head_dim + d] += du * k[j * head_dim + d];
          dk[j * head_dim + d] += du * q[i * head_dim + d];
          dv[j * head_dim + d] += row[j] * d_out[i * head_dim + d];
        }
      }
      for (int64_t d = 0; d < head_dim; ++d) {
        dq[i * head_dim + d] = RoundTo<T>(RoundTo<T>(dq[i * head_dim + d]) * scale);
      }
    }
    for (size_t n = 0; n < dk.size(); ++n) {
      group_dk[n] = RoundTo<T>(group_dk[n] + RoundTo<T>(dk[n]));
      group_dv[n] = RoundTo<T>(group_dv[n] + RoundTo<T>(dv[n]));
    }
    return dq;
  }
};

template <class T>
std::vector<float> ReadPlainRows(const Tensor& tensor, int64_t first, int64_t count, int64_t head,
                                 float factor = 1) {
  std::vector<float> rows;
  rows.reserve(count * tensor.shape[2]);
  for (int64_t i = 0; i < count; ++i) {
    const T* row = tensor.data<T>() + (first + i) * tensor.strides[0] + head * tensor.strides[1];
    for (int64_t d = 0; d < tensor.shape[2]; ++d) {
      rows.push_back(RoundTo<T>(static_cast<float>(row[d]) * factor));
    }
  }
  return rows;
}

template <class T>
void WritePlainRows(const std::vector<float>& rows, const Tensor& tensor, int64_t first,
                    int64_t head) {
  for (size_t n = 0; n < rows.size(); ++n) {
    const int64_t row = first + static_cast<int64_t>(n) / tensor.shape[2];
    const int64_t d = static_cast<int64_t>(n) % tensor.shape[2];
    tensor.data<T>()[row * tensor.strides[0] + head * tensor.strides[1] + d] = T(rows[n]);
  }
}

// Forward, and backward when `backward` is given; outputs must come filled with 0 and -inf.
template <class T>
Status PlainAttention(const Forward& forward, const Backward* backward) {
  const Options& options = forward.options;
  const int32_t* cu_q = options.cu_seqlens_q.data();
  const int32_t* cu_k = options.cu_seqlens_k ? options.cu_seqlens_k.data() : cu_q;
  const int64_t num_kv_heads = forward.k.shape[1];
  const int64_t num_heads = forward.q.shape[1], group = num_heads / num_kv_heads;

  return ParallelFor((options.cu_seqlens_q.size() - 1) * num_kv_heads, [&](int64_t piece, int) {
    const int64_t b = piece / num_kv_heads, kv_head = piece % num_kv_heads;
    PlainHead<T> head;
    head.head_dim = forward.q.shape[2];
    head.scale = options.softmax_scale;
    head.softcap = options.softcap;
    head.length_q = options.seq_used_q ? options.seq_used_q.data()[b] : cu_q[b + 1] - cu_q[b];
    head.length_k = options.seq_used_k ? options.seq_used_k.data()[b] : cu_k[b + 1] - cu_k[b];
    head.k = ReadPlainRows<T>(forward.k, cu_k[b], head.length_k, kv_head);
    head.v = ReadPlainRows<T>(forward.v, cu_k[b], head.length_k, kv_head);
    head.keep.assign(head.length_q * head.length_k, 0);
    for (int64_t i = 0; i < head.length_q; ++i) {
      const int64_t position = i + head.length_k - head.length_q;
      int64_t from = 0, to = head.length_k;
      if (options.causal) to = std::min(to, position + 1);
      // A width past any length is the same as that length, and cannot overflow.
      const auto width = [](int64_t window) { return std::min(window, kMaxLength); };
      if (options.window_left >= 0) from = std::max(from, position - width(options.window_left));
      if (options.window_right >= 0) to = std::min(to, position + width(options.window_right) + 1);
      for (int64_t j = from; j < to; ++j) {
        head.keep[i * head.length_k + j] =
            !options.key_end || i < options.key_end.data()[cu_k[b] + j];
      }
    }
    std::vector<float> dk(head.k.size(), 0.0f), dv(head.k.size(), 0.0f);
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      if (options.alibi_slopes) {
        const bool per_sequence = options.alibi_slopes.size() != num_heads;
        head.slope = options.alibi_slopes.data()[per_sequence ? b * num_heads + h : h];
      } else {
        head.slope = 0;
      }
      head.q = ReadPlainRows<T>(forward.q, cu_q[b], head.length_q, h, head.scale);
      head.Forward();
      WritePlainRows<T>(head.out, forward.out, cu_q[b], h);
      for (int64_t i = 0; i < head.length_q; ++i) {
        forward.softmax_lse.data<float>()[h * forward.softmax_lse.strides[0] + cu_q[b] + i] =
            head.lse[i];
      }
      if (backward == nullptr) continue;
      std::vector<float> d_lse(head.length_q, 0.0f);
      for (int64_t i = 0; backward->d_lse && i < head.length_q; ++i) {
        d_lse[i] = backward->d_lse.data<float>()[h * backward->d_lse.strides[0] + cu_q[b] + i];
      }
      const auto d_out = ReadPlainRows<T>(backward->d_out, cu_q[b], head.length_q, h);
      WritePlainRows<T>(head.Backward(d_out, d_lse, dk, dv), backward->dq, cu_q[b], h);
    }
    if (backward == nullptr) return;
    WritePlainRows<T>(dk, backward->dk, cu_k[b], kv_head);
    WritePlainRows<T>(dv, backward->dv, cu_k[b], kv_head);
  });
}

}  // namespace varlen::varlen_attention
