#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Exact softmax attention over packed sequences, forward and backward.
//
// Sequence b owns query rows cu_seqlens_q[b] .. cu_seqlens_q[b+1]-1 and key rows likewise, of which
// the first seq_used_q[b] / seq_used_k[b] are used when given. Query head h reads key/value head h
// / (numHeads / numKvHeads). With Lq, Lk the used lengths and pos(i) = i + Lk - Lq:
//
//   keep(i,j)  = (!causal || j <= pos(i)) && (left < 0 || j >= pos(i) - left)
//                && (right < 0 || j <= pos(i) + right) && (!key_end || i < key_end[j])
//   u(i,j)     = softmax_scale * q[i] . k[j]
//   s(i,j)     = (softcap > 0 ? softcap * tanh(u / softcap) : u) - slope_h * |pos(i) - j|
//   lse(i)     = ln sum_{j kept} exp(s(i,j));   P(i,j) = exp(s(i,j) - lse(i));   out(i) = sum_j
//   P(i,j) v[j] a row that keeps no key: out = 0, lse = -inf, and no gradient flows through it
//
//   delta(i)   = dout[i] . out[i] - dlse(i)
//   dS(i,j)    = P(i,j) * (dout[i] . v[j] - delta(i));   dU = softcap > 0 ? dS * (1 -
//   tanh^2(u/softcap)) : dS dq[i] = scale * sum_j dU(i,j) k[j];  dk[j] = scale * sum_{h,i} dU(i,j)
//   q[i];  dv[j] = sum_{h,i} P(i,j) dout[i]
//
// Rows that belong to no sequence (past cu_seqlens[B], or past the used length) get out = 0, lse =
// -inf, dq = dk = dv = 0, and whatever they hold in the inputs reaches nothing else. Causal is
// bottom-right aligned (FlashAttention 2.1 and later); a window with causal has right = 0. Masks
// and scores follow the flash-attention README; alibi is added after the cap.
namespace varlen::varlen_attention {

inline constexpr int64_t kMaxHeadDim = 256;

// What both passes share. Field comments: shape, unit, default.
struct Options {
  HostOrTensor<int32_t> cu_seqlens_q;  // [numSeqs + 1]
  HostOrTensor<int32_t> cu_seqlens_k;  // [numSeqs + 1]; absent: cu_seqlens_q
  HostOrTensor<int32_t> seq_used_q;    // [numSeqs], rows used out of each slot; absent: all
  HostOrTensor<int32_t> seq_used_k;    // [numSeqs]
  int64_t max_seqlen_q = -1;           // tokens; -1: computed (host cu_seqlens only)
  int64_t max_seqlen_k = -1;
  float softmax_scale = 0;  // any finite value; the TypeScript layer fills headDim ** -0.5
  bool causal = false;
  int64_t window_left = -1;  // keys to the left of pos(i), -1: unbounded
  int64_t window_right = -1;
  float softcap = 0;                 // 0: off
  HostOrTensor<float> alibi_slopes;  // [numHeads] or [numSeqs * numHeads]
  HostOrTensor<int32_t>
      key_end;  // [totalTokensK], first row of the sequence that no longer sees the key
  bool deterministic = true;  // the CPU is always deterministic
  bool check_device_arrays =
      true;  // cu_seqlens and friends given as tensors are checked in the stream

  // Checks everything that is known when the call is made. `total_q`, `total_k`: rows of q and of
  // k.
  Status Validate(int64_t total_q, int64_t total_k, int64_t num_heads) const;
  // The same checks for arrays that came as tensors; runs in the stream, before the kernel.
  Status ValidateDeviceArrays(int64_t total_q, int64_t total_k, int64_t num_heads) const;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.HostOrTensor("cuSeqlensQ", cu_seqlens_q, {"numSeqs+1"}, Need::kRequired);
    v.HostOrTensor("cuSeqlensK", cu_seqlens_k, {"numSeqs+1"}, Need::kOptional);
    v.HostOrTensor("seqUsedQ", seq_used_q, {"numSeqs"}, Need::kOptional);
    v.HostOrTensor("seqUsedK", seq_used_k, {"numSeqs"}, Need::kOptional);
    v.Scalar("maxSeqlenQ", max_seqlen_q);
    v.Scalar("maxSeqlenK", max_seqlen_k);
    v.Scalar("softmaxScale", softmax_scale);
    v.Flag("causal", causal);
    v.Scalar("windowLeft", window_left);
    v.Scalar("windowRight", window_right);
    v.Scalar("softcap", softcap);
    v.HostOrTensor("alibiSlopes", alibi_slopes, {"numSlopes"}, Need::kOptional);
    v.HostOrTensor("keyEnd", key_end, {"totalTokensK"}, Need::kOptional);
    v.Flag("deterministic", deterministic);
    v.Flag("checkDeviceArrays", check_device_arrays);
  }
};

struct Forward {
  static constexpr const char* kName = "varlenAttention";
  static constexpr bool kOnGpu = true;

  Tensor q;     // [totalTokensQ, numHeads, headDim]
  Tensor k, v;  // [totalTokensK, numKvHeads, headDim]
  Options options;
  int64_t num_splits = 0;  // splits of the keys; 0: chosen from the shapes
  Tensor out;              // [totalTokensQ, numHeads, headDim], out
  Tensor softmax_lse;      // [numHeads, totalTokensQ] float32, natural log, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("v", v, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    options.Visit(visitor);
    visitor.Scalar("numSplits", num_splits);
    visitor.Out("out", out, kFloats, {"totalTokensQ", "numHeads", "headDim"});
    visitor.Out("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "varlenAttentionBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;         // [totalTokensQ, numHeads, headDim]
  Tensor q, k, v, out;  // as in Forward
  Tensor softmax_lse;   // [numHeads, totalTokensQ]
  Tensor d_lse;         // [numHeads, totalTokensQ] float32, optional: gradient of softmax_lse
  Options options;
  Tensor dq, dk, dv;  // shapes and dtype of q, k, v, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("v", v, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("out", out, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.In("dLse", d_lse, kFloat32, {"numHeads", "totalTokensQ"}, Layout::kContiguous,
               Need::kOptional);
    options.Visit(visitor);
    visitor.Out("dq", dq, kFloats, {"totalTokensQ", "numHeads", "headDim"});
    visitor.Out("dk", dk, kFloats, {"totalTokensK", "numKvHeads", "headDim"});
    visitor.Out("dv", dv, kFloats, {"totalTokensK", "numKvHeads", "headDim"});
  }
  Status Validate() const;
};

// Picks the device of q. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64 from inputs of any float dtype, written straight from the formulas above;
// outputs are float64 tensors. The oracle of the tests.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::varlen_attention
