#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Draws one token per row of logits z. With words ordered by z, the largest first and the lower
// index first among equals, and p = softmax(z / temperature):
//
//   top-k keeps the first k words; top-p the fewest of those whose share of their common mass
//   reaches top_p; min-p those with p >= min_p max p. What is left is q, normalised again.
//   token = the first kept word, by index, where the running sum of q exceeds u,
//   u = (random + 1/2) 2^-32 from 32 random bits of the row's own generator
//
// logprob = ln q(token); policy_logprob = ln softmax(z)(token); kept_log_mass = ln of the mass of p
// that was kept, so that logprob + kept_log_mass is ln p(token). A temperature of 0 takes the first
// word of the order: logprob = kept_log_mass = 0. The order of the filters is that of the Hugging
// Face generation library; ties at the cut are broken by index, so that exactly k words stay.
namespace varlen::sampling {

struct Forward {
  static constexpr const char* kName = "sampling";
  static constexpr bool kOnGpu = true;

  Tensor logits;                 // [numSeqs, vocabSize]; -inf forbids a word
  HostOrTensor<int32_t> random;  // [numSeqs], 32 random bits each
  float temperature = 1;
  int64_t top_k = 0;  // 0: off
  float top_p = 1;
  float min_p = 0;
  Tensor tokens;           // [numSeqs] int32, out
  Tensor logprobs;         // [numSeqs] float32, natural log, out
  Tensor policy_logprobs;  // [numSeqs] float32, out
  Tensor kept_log_mass;    // [numSeqs] float32, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("logits", logits, kFloats, {"numSeqs", "vocabSize"});
    visitor.HostOrTensor("random", random, {"numRandom"}, Need::kRequired);
    visitor.Scalar("temperature", temperature);
    visitor.Scalar("topK", top_k);
    visitor.Scalar("topP", top_p);
    visitor.Scalar("minP", min_p);
    visitor.Out("tokens", tokens, kInt32, {"numSeqs"});
    visitor.Out("logprobs", logprobs, kFloat32, {"numSeqs"});
    visitor.Out("policyLogprobs", policy_logprobs, kFloat32, {"numSeqs"});
    visitor.Out("keptLogMass", kept_log_mass, kFloat32, {"numSeqs"});
  }
  Status Validate() const;
};

// Picks the device of logits. Called by the stream, after Validate().
Status Run(const Forward& params);

Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);

// In float64; the log-probabilities are float64 tensors.
Status RunReference(const Forward& params);

// What is wrong with a row that no token can be drawn from.
Status BadRow(int64_t row);

}  // namespace varlen::sampling
