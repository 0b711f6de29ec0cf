#pragma once

#include <cstdint>

#include "core/cross-entropy.h"
#include "core/linear-head.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"
#include "core/vocabulary-shard.h"

// Weighted cross entropy (core/cross-entropy.h) from hidden states and the head's weight, without
// the logits (core/linear-logits.h):
//
//   z[t, v] = cap(logitScale * (hidden[t] . weight[v] + bias[v])) / temperature
//
// Tokens with lossMask 0 or weight 0 count for nothing: their hidden states are never read, their
// outputs and gradients are 0. Beside the results it takes a few megabytes per thread, whatever the
// number of tokens and of words.
//
// The vocabulary may lie on several ranks (core/vocabulary-shard.h): Statistics are those of this
// rank's words, the ranks' together are an input of Forward, Backward gives the gradients of this
// rank's words and this rank's share of dHidden.
namespace varlen::cross_entropy_from_hidden {

// What the rows of a head say of the words it has, for the losses of this file's kind and for the
// policy loss.
struct Statistics {
  static constexpr const char* kName = "vocabularyStatistics";

  LinearHead head;
  CrossEntropyTokens tokens;
  VocabularyShard shard;
  float temperature = 1;
  float softcap = 0;
  float logit_scale = 1;
  Tensor statistics;  // [kNumRowStatistics, totalTokens] float64

  template <class Visitor>
  void Visit(Visitor& v) {
    head.Visit(v);
    tokens.Visit(v);
    shard.Visit(v);
    v.Scalar("temperature", temperature);
    v.Scalar("softcap", softcap);
    v.Scalar("logitScale", logit_scale);
    v.Out("statistics", statistics, kFloat64, {kNumRowStatisticsName, "totalTokens"});
  }
  LogitShape shape() const { return {temperature, softcap, logit_scale}; }
  Status Validate() const;
};

struct Forward {
  static constexpr const char* kName = "crossEntropyFromHidden";
  static constexpr bool kOnGpu = true;

  LinearHead head;
  CrossEntropyTokens tokens;
  CrossEntropyOptions options;
  VocabularyShard shard;
  Tensor statistics;  // [kNumRowStatistics, totalTokens] float64 of all ranks; absent: not split
  CrossEntropyOutputs out;

  template <class Visitor>
  void Visit(Visitor& v) {
    head.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    shard.Visit(v);
    v.In("statistics", statistics, kFloat64, {kNumRowStatisticsName, "totalTokens"},
         Layout::kContiguous, Need::kOptional);
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
  VocabularyShard shard;
  LinearHeadGradients gradients;

  template <class Visitor>
  void Visit(Visitor& v) {
    upstream.Visit(v);
    head.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    shard.Visit(v);
    gradients.Visit(v);
  }
  Status Validate() const;
};

// Picks the device of hidden. Called by the stream, after Validate().
Status Run(const Statistics& params);
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Statistics& params);
Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64 from inputs of any float dtype, written straight from the formulas; outputs
// are float64 tensors. The oracle of the tests.
// Forward and Backward are those of a whole vocabulary: parts are tested by what they add up to.
Status RunReference(const Statistics& params);
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::cross_entropy_from_hidden
