#pragma once

#include <cstdint>

#include "core/cross-entropy.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Weighted cross entropy (core/cross-entropy.h) from hidden states and the head's weight, without
// the logits (core/linear-logits.h):
//
//   z[t, v] = cap(logitScale * (hidden[t] . weight[v] + bias[v])) / temperature
//
// Tokens with lossMask 0 or weight 0 count for nothing: their hidden states are never read, their
// outputs and gradients are 0. Beside the results it takes a few megabytes per thread, whatever the
// number of tokens and of words.
namespace varlen::cross_entropy_from_hidden {

struct Head {
  Tensor hidden;  // [totalTokens, hiddenSize]
  Tensor weight;  // [vocabSize, hiddenSize]
  Tensor bias;    // [vocabSize], optional

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("hidden", hidden, kFloats, {"totalTokens", "hiddenSize"}, Layout::kRows);
    v.In("weight", weight, kFloats, {"vocabSize", "hiddenSize"}, Layout::kRows);
    v.In("bias", bias, kFloats, {"vocabSize"}, Layout::kContiguous, Need::kOptional);
  }
};

struct Forward {
  static constexpr const char* kName = "crossEntropyFromHidden";

  Head head;
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  CrossEntropyOutputs out;

  template <class Visitor>
  void Visit(Visitor& v) {
    head.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    out.Visit(v);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "crossEntropyFromHiddenBackward";

  CrossEntropyUpstream upstream;
  Head head;
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  bool want_hidden = true, want_weight = true, want_bias = true;
  Tensor d_hidden;  // [totalTokens, hiddenSize], dtype of hidden
  Tensor d_weight;  // [vocabSize, hiddenSize] float32
  Tensor d_bias;    // [vocabSize] float32

  template <class Visitor>
  void Visit(Visitor& v) {
    upstream.Visit(v);
    head.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    v.Flag("wantHidden", want_hidden);
    v.Flag("wantWeight", want_weight);
    v.Flag("wantBias", want_bias);
    v.Out("dHidden", d_hidden, kFloats, {"totalTokens", "hiddenSize"}, want_hidden);
    v.Out("dWeight", d_weight, kFloat32, {"vocabSize", "hiddenSize"}, want_weight);
    v.Out("dBias", d_bias, kFloat32, {"vocabSize"}, want_bias);
  }
  Status Validate() const;
};

// Picks the device of hidden. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64 from inputs of any float dtype, written straight from the formulas; outputs
// are float64 tensors. The oracle of the tests.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::cross_entropy_from_hidden
