#pragma once

#include <cstdint>

#include "core/cross-entropy.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Weighted cross entropy (core/cross-entropy.h) of logits:
//
//   z[t, v] = cap(logitScale * logits[t, v]) / temperature
//
// Tokens with lossMask 0 or weight 0 count for nothing: their logits are never read, their outputs
// and gradients are 0.
namespace varlen::cross_entropy {

struct Forward {
  static constexpr const char* kName = "crossEntropy";
  static constexpr bool kOnGpu = true;

  Tensor logits;  // [totalTokens, vocabSize]
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  CrossEntropyOutputs out;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("logits", logits, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    tokens.Visit(v);
    options.Visit(v);
    out.Visit(v);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "crossEntropyBackward";
  static constexpr bool kOnGpu = true;

  CrossEntropyUpstream upstream;
  Tensor logits;
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  Tensor d_logits;  // [totalTokens, vocabSize], dtype of logits

  template <class Visitor>
  void Visit(Visitor& v) {
    upstream.Visit(v);
    v.In("logits", logits, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    tokens.Visit(v);
    options.Visit(v);
    v.Out("dLogits", d_logits, kFloats, {"totalTokens", "vocabSize"});
  }
  Status Validate() const;
};

// Picks the device of logits. Called by the stream, after Validate().
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

}  // namespace varlen::cross_entropy
