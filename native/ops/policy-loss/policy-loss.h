#pragma once

#include "core/loss/batch.h"
#include "core/loss/config.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The policy loss from log-probabilities, on packed responses.
//
//   loss = sum_i s_i sum_{t in i, m_t = 1} [ w_t c_t l(x_t, A_t) + coef k_t ]
//   d_logprobs[t] = d loss / d logprobs[t], 0 where m_t = 0
//
// l, k and c are chosen by core/loss/config.h; their formulas are in core/loss/rules-inl.h, the
// order of the additions in core/loss/loss.h. The aggregation lies in s_i alone.
namespace varlen::policy_loss {

struct Forward {
  static constexpr const char* kName = "policyLoss";
  static constexpr bool kOnGpu = true;

  Tensor logprobs;  // [totalTokens]
  loss::Batch batch;
  Tensor entropies;  // [totalTokens] float32, for the statistics
  loss::Config config;
  bool per_token = false, per_sequence = false;  // which optional outputs are wanted
  Tensor loss;                                   // [] float32, out
  Tensor d_logprobs;                             // [totalTokens] float32, out
  Tensor sums;             // [loss::kNumSums] float64, out: what statistics are made of
  Tensor per_token_loss;   // [totalTokens] float32, out: the bracket
  Tensor sequence_losses;  // [numSeqs] float32, out: sums of the bracket
  Tensor sequence_tokens;  // [numSeqs] int32, out: active tokens

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("logprobs", logprobs, kFloats, {"totalTokens"});
    batch.Visit(v);
    v.In("entropies", entropies, kFloat32, {"totalTokens"}, Layout::kContiguous, Need::kOptional);
    config.Visit(v);
    v.Flag("perToken", per_token);
    v.Flag("perSequence", per_sequence);
    v.Out("loss", loss, kFloat32, {});
    v.Out("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.Out("sums", sums, kFloat64, {loss::kNumSumsName});
    v.Out("perTokenLoss", per_token_loss, kFloat32, {"totalTokens"}, per_token);
    v.Out("sequenceLosses", sequence_losses, kFloat32, {"numSeqs"}, per_sequence);
    v.Out("sequenceTokens", sequence_tokens, kInt32, {"numSeqs"}, per_sequence);
  }
  Status Validate() const;
};

// gradient = d_loss * d_logprobs, in the dtype of the log-probabilities.
struct Backward {
  static constexpr const char* kName = "policyLossBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_loss;      // [] float32
  Tensor d_logprobs;  // [totalTokens] float32, of Forward
  Tensor logprobs;    // [totalTokens], for its dtype
  Tensor gradient;    // [totalTokens], dtype of logprobs, out

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("dLoss", d_loss, kFloat32, {});
    v.In("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.In("logprobs", logprobs, kFloats, {"totalTokens"});
    v.Out("gradient", gradient, kFloats, {"totalTokens"});
  }
  Status Validate() const { return {}; }
};

Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// In float64 from inputs of any float dtype; outputs are float64 tensors (sequence_tokens int32),
// of which those that are absent are left out.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::policy_loss
