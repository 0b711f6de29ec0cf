#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Similar visual tokens of an image become one, before the language model reads them: token merging
// (ToMe, arXiv 2210.09461) inside each image, and a single pass with a threshold (derived here).
// Similarity is the cosine of `metric` rows, by default the features; a row of zeros has cosine 0
// with everything. Ties go to the lower position, NaN counts as no similarity.
//
// Rounds (threshold < 0): of the tokens that are left of an image, in order, A holds those at even
// and B at odd places. Each a chooses its best b; the most similar a's, at most half of the tokens
// and no more than the target asks for, are merged into theirs. Until an image has target tokens.
// Where A holds protected tokens only, the two change roles for that round.
//
// Threshold: in order, a token joins the most similar one that was kept so far, of all kept ones of
// its image, or of its frame and of the places next to its own in the frame before, if the cosine
// is at least `threshold`; else it is kept. Too few kept: those that joined with the lowest cosines
// are kept after all. More than the target: rounds as above.
//
// A kept token becomes the mean of its members: of all tokens in it, or (`uniform`) of what was
// merged round by round, each counted once. `prune` keeps its own features instead. A protected
// token is never merged into another, and keeps its own features. So a row is a sum of its members'
// features, each times a weight w of its own, and the gradient, which takes the choice as given, is
//   d features[x] = w[x] * d out[assign[x]]
namespace varlen::compress_visual_tokens {

struct Forward {
  static constexpr const char* kName = "compressVisualTokens";
  static constexpr bool kOnGpu = true;

  Tensor features;                       // [numTokens, hidden]
  Tensor metric;                         // [numTokens, metricDim], optional
  HostOrTensor<int32_t> image_offsets;   // [numImages + 1] on the host, tokens
  HostOrTensor<int32_t> targets;         // [numImages] on the host: tokens to end with, at most
  HostOrTensor<int32_t> minimums;        // [numImages] on the host: tokens to keep, at least
  HostOrTensor<int32_t> protected_mask;  // [numTokens] on the host, optional: 1 where protected
  double threshold = -1;
  int64_t frame_tokens = 0;  // 0: no frames
  bool uniform = false, prune = false;
  Tensor out;          // [numRows, hidden], out; rows past the last kept token are zero
  Tensor keep_idx;     // [numRows] int32, token that each row was, ascending, out
  Tensor assign;       // [numTokens] int32, row that each token went to, out
  Tensor size;         // [numRows] float32, tokens in each row, out
  Tensor cell;         // [numRows] int32, place of each row in its frame or image, out
  Tensor out_offsets;  // [numImages + 1] int32, rows of each image, out
  Tensor weight;       // [numTokens] float32, of each token's features in its row, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("features", features, kFloats, {"numTokens", "hidden"});
    visitor.In("metric", metric, kMetric, {"numTokens", "metricDim"}, Layout::kContiguous,
               Need::kOptional);
    visitor.HostOrTensor("imageOffsets", image_offsets, {"numImages+1"}, Need::kRequired);
    visitor.HostOrTensor("targets", targets, {"numImages"}, Need::kRequired);
    visitor.HostOrTensor("minimums", minimums, {"numImages"}, Need::kRequired);
    visitor.HostOrTensor("protected", protected_mask, {"numTokens"}, Need::kOptional);
    visitor.Scalar("threshold", threshold);
    visitor.Scalar("frameTokens", frame_tokens);
    visitor.Flag("uniform", uniform);
    visitor.Flag("prune", prune);
    visitor.Out("out", out, kFloats, {"numRows", "hidden"});
    visitor.Out("keepIdx", keep_idx, kInt32, {"numRows"});
    visitor.Out("assign", assign, kInt32, {"numTokens"});
    visitor.Out("size", size, kFloat32, {"numRows"});
    visitor.Out("cell", cell, kInt32, {"numRows"});
    visitor.Out("outOffsets", out_offsets, kInt32, {"numImages+1"});
    visitor.Out("weight", weight, kFloat32, {"numTokens"});
  }
  Status Validate() const;

  static constexpr TypeVar kMetric{"metricType", kFloats.allowed};
};

struct Backward {
  static constexpr const char* kName = "compressVisualTokensBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;           // [numRows, hidden]
  Tensor assign, weight;  // what Forward gave
  Tensor d_features;      // [numTokens, hidden], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"numRows", "hidden"});
    visitor.In("assign", assign, kInt32, {"numTokens"});
    visitor.In("weight", weight, kFloat32, {"numTokens"});
    visitor.Out("dFeatures", d_features, kFloats, {"numTokens", "hidden"});
  }
  Status Validate() const { return {}; }
};

// Picks the device of features. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// In float64, token by token from the text above; `out`, `size`, `weight` and `d_features` are
// float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::compress_visual_tokens
