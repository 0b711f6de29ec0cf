#pragma once

#include <vector>

#include "core/loss/batch.h"
#include "core/loss/config.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The policy loss from logits, on packed responses: log-softmax, the loss of core/loss, and back.
//
//   z[t, v]    = logits[t, v] / temperature
//   lse[t]     = ln sum_v e^z[t, v],  p = e^(z - lse)
//   logprob[t] = z[t, target[t]] - lse[t],  H[t] = -sum_v p ln p
//   d_logits[t, v] = d_loss / temperature * [ c (1[v = target] - p) - e p (ln p + H) ],
//                    c = d loss / d logprob[t], e = d loss / d H[t]
//
// Rows whose mask is 0 are never read and get a gradient of 0.
namespace varlen::policy_loss_from_logits {

struct Forward {
  static constexpr const char* kName = "policyLossFromLogits";
  static constexpr bool kOnGpu = true;

  Tensor logits;                     // [totalTokens, vocabSize]
  HostOrTensor<int32_t> target_ids;  // [totalTokens], in [0, vocabSize) at active rows
  loss::Batch batch;
  loss::Config config;
  double temperature = 1;
  bool per_token = false, per_sequence = false, want_entropies = false, want_squares = false;
  Tensor loss;             // [] float32, out
  Tensor d_logprobs;       // [totalTokens] float32, out
  Tensor sums;             // [loss::kNumSums] float64, out
  Tensor logprobs;         // [totalTokens] float32, out, 0 where masked
  Tensor lse;              // [totalTokens] float64, out, 0 where masked
  Tensor per_token_loss;   // [totalTokens] float32, out
  Tensor sequence_losses;  // [numSeqs] float32, out
  Tensor sequence_tokens;  // [numSeqs] int32, out
  Tensor entropies;        // [totalTokens] float32, out, 0 where masked
  Tensor d_entropies;      // [totalTokens] float32, out: d loss / d H
  Tensor sum_squares;      // [totalTokens] float32, out: sum_v p^2

  bool uses_entropies() const { return want_entropies || config.entropy_coef != 0; }

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("logits", logits, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.HostOrTensor("targetIds", target_ids, {"totalTokens"}, Need::kRequired);
    batch.Visit(v);
    config.Visit(v);
    v.Scalar("temperature", temperature);
    v.Flag("perToken", per_token);
    v.Flag("perSequence", per_sequence);
    v.Flag("wantEntropies", want_entropies);
    v.Flag("wantSquares", want_squares);
    v.Out("loss", loss, kFloat32, {});
    v.Out("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.Out("sums", sums, kFloat64, {loss::kNumSumsName});
    v.Out("logprobs", logprobs, kFloat32, {"totalTokens"});
    v.Out("lse", lse, kFloat64, {"totalTokens"});
    v.Out("perTokenLoss", per_token_loss, kFloat32, {"totalTokens"}, per_token);
    v.Out("sequenceLosses", sequence_losses, kFloat32, {"numSeqs"}, per_sequence);
    v.Out("sequenceTokens", sequence_tokens, kInt32, {"numSeqs"}, per_sequence);
    v.Out("entropies", entropies, kFloat32, {"totalTokens"}, uses_entropies());
    v.Out("dEntropies", d_entropies, kFloat32, {"totalTokens"}, uses_entropies());
    v.Out("sumSquares", sum_squares, kFloat32, {"totalTokens"}, want_squares);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "policyLossFromLogitsBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_loss;                     // [] float32
  Tensor logits;                     // [totalTokens, vocabSize]; absent when overwritten
  std::vector<Tensor> overwrite;     // the logits, where the gradient takes their place
  HostOrTensor<int32_t> target_ids;  // as in Forward, like all that follow
  Tensor d_logprobs;
  Tensor lse;
  Tensor entropies, d_entropies;
  double temperature = 1;
  Tensor d_logits;  // [totalTokens, vocabSize], dtype of logits, out unless overwritten

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr auto kDense = Layout::kContiguous;
    v.In("dLoss", d_loss, kFloat32, {});
    v.In("logits", logits, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows, Need::kOptional);
    v.Tensors("overwrite", overwrite, kFloats, Access::kUpdate);
    v.HostOrTensor("targetIds", target_ids, {"totalTokens"}, Need::kRequired);
    v.In("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.In("lse", lse, kFloat64, {"totalTokens"});
    v.In("entropies", entropies, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("dEntropies", d_entropies, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.Scalar("temperature", temperature);
    v.Out("dLogits", d_logits, kFloats, {"totalTokens", "vocabSize"}, overwrite.empty());
  }
  Status Validate() const;

  const Tensor& source() const { return overwrite.empty() ? logits : overwrite[0]; }
  const Tensor& target() const { return overwrite.empty() ? d_logits : overwrite[0]; }
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

}  // namespace varlen::policy_loss_from_logits
