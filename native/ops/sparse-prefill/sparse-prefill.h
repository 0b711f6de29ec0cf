#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Attention of long prompts over chosen keys: the prefill of text, video and mixed sequences.
//
// A plan says, per sequence and query head, which set S of (row, key) pairs is computed (pattern.h;
// the patterns are those of MInference, arXiv 2407.02490, and MMInference, arXiv 2504.16083). With
// Nq, Nk the lengths of a sequence and pos(i) = i + Nk - Nq:
//
//   u(i,j)   = softmax_scale * q[i] . k[j]
//   s(i,j)   = (softcap > 0 ? softcap * tanh(u / softcap) : u) + key_bias[h, j]
//   lse(i)   = ln sum_{(i,j) in S} exp(s(i,j));   out(i) = sum_{(i,j) in S} exp(s(i,j) - lse(i))
//   v[j] a row that keeps no key: out = 0, lse = -inf, and no gradient flows through it
//
//   P(i,j)     = exp(s(i,j) - lse(i));   delta(i) = dout[i] . out[i] - dlse(i)
//   dU(i,j)    = P(i,j) * (dout[i] . v[j] - delta(i)) * (softcap > 0 ? 1 - tanh^2(u/softcap) : 1)
//   dq[i]      = scale * sum_j dU(i,j) k[j];   dk[j] = scale * sum_{h,i} dU(i,j) q[i];
//   dv[j]      = sum_{h,i} P(i,j) dout[i], all over S; key_bias is a constant
//
// Rebalance changes how much attention a row pays each segment g of its keys (an image), and
// nothing else (formulas: docs/guide/sparse-prefill.md; derived here). With a_g the row's mass on
// segment g, A their sum over the visible ones, w_g the shares asked for:
//
//   a'_g = (1 - strength) a_g + strength A w_g;   b_g = ln(a'_g / a_g), at most max_bias either way
//   out(i) = sum_g e^{b_g} sum_{j in g} P(i,j) v[j] + the part of keys in no segment
//
// sum a'_g = A, so that lse stays. Backward with the b_g as constants: P(i,j) gains e^{b_g}.
//
// S is exactly what the mask op exports; nothing else is computed and nothing is left out. Every S
// of a causal plan obeys j <= pos(i). Query head h reads key/value head h / (numHeads /
// numKvHeads). A row's bits depend on its own sequence and plan only: not on threads, nor on what
// else is in the pack.
namespace varlen::sparse_prefill {

inline constexpr int64_t kMaxHeadDim = 512;  // and a multiple of 8

// What a plan and a run both need of the sequences.
struct Lengths {
  HostOrTensor<int32_t> cu_seqlens_q, cu_seqlens_k;  // [numSeqs + 1], on the host
  float softmax_scale = 0;
  float softcap = 0;  // 0: off

  Status Validate(int64_t total_q, int64_t total_k) const;
  template <class Visitor>
  void Visit(Visitor& v) {
    v.HostOrTensor("cuSeqlensQ", cu_seqlens_q, {"numSeqs+1"}, Need::kRequired);
    v.HostOrTensor("cuSeqlensK", cu_seqlens_k, {"numSeqs+1"}, Need::kRequired);
    v.Scalar("softmaxScale", softmax_scale);
    v.Scalar("softcap", softcap);
  }
};

struct Forward {
  static constexpr const char* kName = "sparsePrefill";
  static constexpr bool kOnGpu = true;
  static constexpr const char* kHostInput = "plan";

  Tensor plan;      // [planWords] int32, on the host
  Tensor q;         // [totalTokensQ, numHeads, headDim]
  Tensor k;         // [totalTokensK, numKvHeads, headDim]
  Tensor v;         // [totalTokensK, numKvHeads, valueDim]
  Tensor key_bias;  // [numHeads, totalTokensK] float32, optional: added to the scores
  Lengths lengths;
  Tensor out;          // [totalTokensQ, numHeads, valueDim], out
  Tensor softmax_lse;  // [numHeads, totalTokensQ] float32, natural log, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("v", v, kFloats, {"totalTokensK", "numKvHeads", "valueDim"}, Layout::kRows);
    visitor.In("keyBias", key_bias, kFloat32, {"numHeads", "totalTokensK"}, Layout::kContiguous,
               Need::kOptional);
    lengths.Visit(visitor);
    visitor.Out("out", out, kFloats, {"totalTokensQ", "numHeads", "valueDim"});
    visitor.Out("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "sparsePrefillBackward";

  Tensor d_out;                    // [totalTokensQ, numHeads, valueDim]
  Tensor plan, q, k, v, key_bias;  // as in Forward
  Tensor segments, segment_bias;   // of Rebalance, both or neither
  Tensor out, softmax_lse;         // what Forward or Rebalance gave
  Tensor d_lse;                    // [numHeads, totalTokensQ] float32, optional
  Lengths lengths;
  Tensor dq, dk, dv;  // shapes and dtype of q, k, v, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("v", v, kFloats, {"totalTokensK", "numKvHeads", "valueDim"}, Layout::kRows);
    visitor.In("keyBias", key_bias, kFloat32, {"numHeads", "totalTokensK"}, Layout::kContiguous,
               Need::kOptional);
    visitor.In("segments", segments, kInt32, {"totalTokensK"}, Layout::kContiguous,
               Need::kOptional);
    visitor.In("segmentBias", segment_bias, kFloat32, {"numHeads", "totalTokensQ", "numSegments"},
               Layout::kContiguous, Need::kOptional);
    visitor.In("out", out, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.In("dLse", d_lse, kFloat32, {"numHeads", "totalTokensQ"}, Layout::kContiguous,
               Need::kOptional);
    lengths.Visit(visitor);
    visitor.Out("dq", dq, kFloats, {"totalTokensQ", "numHeads", "headDim"});
    visitor.Out("dk", dk, kFloats, {"totalTokensK", "numKvHeads", "headDim"});
    visitor.Out("dv", dv, kFloats, {"totalTokensK", "numKvHeads", "valueDim"});
  }
  Status Validate() const;
};

struct Rebalance {
  static constexpr const char* kName = "rebalanceAttention";

  Tensor plan, q, k, v;        // as in Forward
  Tensor segments;             // [totalTokensK], segment of each key; -1: none
  HostOrTensor<float> shares;  // [numSegments] on the host, w_g up to a factor
  Lengths lengths;
  double strength = 0.5, max_bias = 4;
  Tensor out, softmax_lse;  // as in Forward, out
  Tensor segment_bias;      // [numHeads, totalTokensQ, numSegments] float32, b_g, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.In("v", v, kFloats, {"totalTokensK", "numKvHeads", "valueDim"}, Layout::kRows);
    visitor.In("segments", segments, kInt32, {"totalTokensK"});
    visitor.HostOrTensor("shares", shares, {"numSegments"}, Need::kRequired);
    lengths.Visit(visitor);
    visitor.Scalar("strength", strength);
    visitor.Scalar("maxBias", max_bias);
    visitor.Out("out", out, kFloats, {"totalTokensQ", "numHeads", "valueDim"});
    visitor.Out("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.Out("segmentBias", segment_bias, kFloat32, {"numHeads", "totalTokensQ", "numSegments"});
  }
  Status Validate() const;
};
// Partial results of one tile's segments stand side by side: 33 MiB a thread at headDim 512.
inline constexpr int64_t kMaxSegments = 255;

// Resolves a configuration into a plan: finds verticals, slashes, strides and blocks from the last
// queries (estimate.h), measures what the plan keeps, and adds keys where too little is kept.
struct Plan {
  static constexpr const char* kName = "sparsePrefillPlan";

  Tensor q, k;                   // as in Forward
  HostOrTensor<int32_t> config;  // the plan's words with patterns as asked for (pattern.h)
  Lengths lengths;
  int64_t last_q = 64;       // rows that patterns are estimated from, 1..64
  int64_t recall_rows = 0;   // rows of the recall certificate; 0: none is made
  double min_recall = 0;     // 0: no guarantee
  int64_t on_miss = 0;       // 0: densify, 1: dense, 2: warn, 3: fail
  int64_t seed = 0;          // of the certificate's rows
  double dense_above = 1;    // a head that would issue more than this share of all pairs is dense
  bool share_group = false;  // heads of one key/value head compute the union of their patterns
  Tensor plan;               // [planWords] int32, out
  Tensor report;             // [numSeqs, numHeads, reportWords] float64, out: Report below

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
    visitor.In("k", k, kFloats, {"totalTokensK", "numKvHeads", "headDim"}, Layout::kRows);
    visitor.HostOrTensor("config", config, {"configWords"}, Need::kRequired);
    lengths.Visit(visitor);
    visitor.Scalar("lastQ", last_q);
    visitor.Scalar("recallRows", recall_rows);
    visitor.Scalar("minRecall", min_recall);
    visitor.Scalar("onMiss", on_miss);
    visitor.Scalar("seed", seed);
    visitor.Scalar("denseAbove", dense_above);
    visitor.Flag("shareGroup", share_group);
    visitor.Out("plan", plan, kInt32, {"planWords"});
    visitor.Out("report", report, kFloat64, {"planSeqs", "planHeads", "reportWords"});
  }
  Status Validate() const;

  static constexpr TypeVar kFloat64{"", BitOf(DType::kF64)};
};

// Per (sequence, head) of a plan's report.
struct Report {
  double recall_mean, recall_p5, recall_min;  // NaN without a certificate
  double lower_bound;                         // one-sided Hoeffding bound on the mean recall, 95 %
  double densified;                           // times the budget was doubled; 4: made dense
  double non_finite;                          // probe rows whose scores are NaN or infinite
  double estimate_ms, build_ms;
};
inline constexpr int64_t kReportWords = sizeof(Report) / sizeof(double);

class Head;
// Counts of `head` as below, from at most `max_tiles` of its tiles.
void CountHead(const Head& head, int64_t max_tiles, double* counts);

// What a plan computes, counted tile by tile. Above 512 tiles of a head every n-th stands for its
// neighbours.
struct Count {
  static constexpr const char* kName = "sparsePrefillCount";

  Tensor plan;
  Tensor counts;  // [numSeqs, numHeads, 6] float64, out: pairs of lines, computed pairs, issued
                  // pairs (whole tiles), all causal pairs, tiles, keys of all tiles

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.Out("counts", counts, Plan::kFloat64, {"planSeqs", "planHeads", "countWords"});
  }
  Status Validate() const { return {}; }
};
inline constexpr int64_t kCountWords = 6;

// The set of one head: how often each pair is computed (0 or 1), as the tiles of a run see it.
struct Mask {
  static constexpr const char* kName = "sparsePrefillMask";

  Tensor plan;
  int64_t sequence = 0, head = 0;
  bool lines = false;
  Tensor mask;  // [Nq, Nk] uint8, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.Scalar("sequence", sequence);
    visitor.Scalar("head", head);
    visitor.Flag("lines", lines);
    visitor.Out("mask", mask, kUint8, {"rows", "keys"});
  }
  Status Validate() const { return {}; }

  static constexpr TypeVar kUint8{"", BitOf(DType::kU8)};
};

// The tiles of one head as compressed rows: tile t holds rows rows[tile_rows[t] ..] and keys
// columns[tile_columns[t] ..], key n kept by the rows whose bits are set in row_bits[2n], [2n + 1].
struct Indices {
  static constexpr const char* kName = "sparsePrefillIndices";

  Tensor plan;
  int64_t sequence = 0, head = 0;
  Tensor tile_rows, tile_columns;  // [tiles + 1]
  Tensor rows, columns, row_bits;  // sizes as counted; row_bits is twice as long as columns

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("plan", plan, kInt32, {"planWords"});
    visitor.Scalar("sequence", sequence);
    visitor.Scalar("head", head);
    visitor.Out("tileRows", tile_rows, kInt32, {"tiles+1"});
    visitor.Out("tileColumns", tile_columns, kInt32, {"tiles+1"});
    visitor.Out("rows", rows, kInt32, {"numRows"});
    visitor.Out("columns", columns, kInt32, {"numColumns"});
    visitor.Out("rowBits", row_bits, kInt32, {"numBits"});
  }
  Status Validate() const { return {}; }
};

// Joins two results over disjoint keys: lse = ln(e^lse1 + e^lse2), out their mean weighted by
// w1 = e^(lse1 - lse) and w2 = e^(lse2 - lse). Its gradient, with t = w1 w2 dout . (out1 - out2):
//
//   d out1 = w1 dout;   d out2 = w2 dout;   d lse1 = w1 dlse + t;   d lse2 = w2 dlse - t
//
// A row without keys has w = 0 and takes no gradient.
struct Merge {
  static constexpr const char* kName = "mergeAttentionStates";
  static constexpr bool kOnGpu = true;

  Tensor out1, out2;  // [totalTokensQ, numHeads, valueDim]
  Tensor lse1, lse2;  // [numHeads, totalTokensQ] float32
  Tensor out, softmax_lse;

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("out1", out1, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("lse1", lse1, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.In("out2", out2, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("lse2", lse2, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.Out("out", out, kFloats, {"totalTokensQ", "numHeads", "valueDim"});
    visitor.Out("softmaxLse", softmax_lse, kFloat32, {"numHeads", "totalTokensQ"});
  }
  Status Validate() const { return {}; }
};

struct MergeBackward {
  static constexpr const char* kName = "mergeAttentionStatesBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;                           // [totalTokensQ, numHeads, valueDim]
  Tensor out1, lse1, out2, lse2;          // as in Merge
  Tensor d_lse;                           // [numHeads, totalTokensQ] float32, optional
  Tensor d_out1, d_lse1, d_out2, d_lse2;  // shapes and dtypes of what they belong to, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("out1", out1, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("lse1", lse1, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.In("out2", out2, kFloats, {"totalTokensQ", "numHeads", "valueDim"}, Layout::kRows);
    visitor.In("lse2", lse2, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.In("dLse", d_lse, kFloat32, {"numHeads", "totalTokensQ"}, Layout::kContiguous,
               Need::kOptional);
    visitor.Out("dOut1", d_out1, kFloats, {"totalTokensQ", "numHeads", "valueDim"});
    visitor.Out("dLse1", d_lse1, kFloat32, {"numHeads", "totalTokensQ"});
    visitor.Out("dOut2", d_out2, kFloats, {"totalTokensQ", "numHeads", "valueDim"});
    visitor.Out("dLse2", d_lse2, kFloat32, {"numHeads", "totalTokensQ"});
  }
  Status Validate() const { return {}; }
};

Status Run(const Forward& params);
Status Run(const Backward& params);
Status Run(const Rebalance& params);
Status Run(const Plan& params);
Status Run(const Count& params);
Status Run(const Mask& params);
Status Run(const Indices& params);
Status Run(const Merge& params);
Status Run(const MergeBackward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCpu(const Rebalance& params);
Status RunCpu(const Plan& params);
Status RunCpu(const Merge& params);
Status RunCpu(const MergeBackward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);
Status RunCuda(const Rebalance& params);
Status RunCuda(const Plan& params);
Status RunCuda(const Merge& params);
Status RunCuda(const MergeBackward& params);

// Everything in float64 from inputs of any float dtype, pair by pair from the definitions of the
// patterns, sharing nothing with the tiles; outputs are float64 tensors. The oracle of the tests.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);
Status RunReference(const Rebalance& params);
Status RunReference(const Merge& params);
Status RunReference(const MergeBackward& params);

}  // namespace varlen::sparse_prefill
