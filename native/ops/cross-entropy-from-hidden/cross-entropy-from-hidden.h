#pragma once

#include <cstdint>

#include "core/cross-entropy.h"
#include "core/linear-head.h"
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

struct Forward {
  static constexpr const char* kName = "crossEntropyFromHidden";
  static constexpr bool kOnGpu = true;

  LinearHead head;
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
  static constexpr bool kOnGpu = true;

  CrossEntropyUpstream upstream;
  LinearHead head;
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  LinearHeadGradients gradients;

  template <class Visitor>
  void Visit(Visitor& v) {
    upstream.Visit(v);
    head.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    gradients.Visit(v);
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
