#pragma once

#include <algorithm>

#include "core/loss/loss.h"
#include "core/tensor.h"
#include "core/visit.h"

namespace varlen::loss {

// The arrays of `ResponseBatch` (src/ops/response-batch.ts) beside its log-probabilities, and the
// plan's weights: what every op of the policy loss takes.
struct Batch {
  HostOrTensor<int32_t> cu_seqlens;  // [numSeqs + 1], from 0 to totalTokens
  Tensor old_logprobs;               // [totalTokens] float32, like the next three
  Tensor ref_logprobs;
  Tensor rollout_logprobs;
  Tensor kept_log_mass;
  Tensor loss_mask;                   // [totalTokens] uint8
  Tensor kl_mask;                     // [totalTokens] uint8
  HostOrTensor<float> advantages;     // [numSeqs] or [totalTokens]
  int64_t advantages_per = 0;         // 0: told by the length, 1: sequence, 2: token
  HostOrTensor<float> token_weights;  // [totalTokens]
  HostOrTensor<float> seq_scale;      // [numSeqs]

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr auto kDense = Layout::kContiguous;
    v.HostOrTensor("cuSeqlens", cu_seqlens, {"numSeqs+1"}, Need::kRequired);
    v.In("oldLogprobs", old_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("refLogprobs", ref_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("rolloutLogprobs", rollout_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("keptLogMass", kept_log_mass, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    v.In("klMask", kl_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    v.HostOrTensor("advantages", advantages, {"numAdvantages"}, Need::kRequired);
    v.Scalar("advantagesPer", advantages_per);
    v.HostOrTensor("tokenWeights", token_weights, {"totalTokens"}, Need::kOptional);
    v.HostOrTensor("seqScale", seq_scale, {"numSeqs"}, Need::kRequired);
  }

  int64_t num_seqs() const { return std::max<int64_t>(0, cu_seqlens.size() - 1); }

  // What is known when the call is made: sizes, the arrays that are on the host, and the inputs
  // that the configuration asks for.
  Status Validate(const Config& config, int64_t num_tokens) const;
  // The rest, in the stream.
  Status ValidateInStream(int64_t num_tokens) const;
  // The arrays as the loss takes them; log-probabilities and entropies are the op's to add.
  Inputs ToInputs(int64_t num_tokens) const;
  ReferenceInputs ToReference(int64_t num_tokens) const;

 private:
  bool PerToken(int64_t num_tokens) const {
    return advantages_per == 2 ||
           (advantages_per == 0 && advantages.size() == num_tokens && num_tokens != num_seqs());
  }
};

// The outputs of an op that ends in this loss.
template <class Forward>
Outputs OutputsOf(const Forward& p) {
  const auto floats = [](const Tensor& tensor) { return tensor ? tensor.data<float>() : nullptr; };
  Outputs out;
  out.loss = floats(p.loss);
  out.d_logprobs = floats(p.d_logprobs);
  out.sums = p.sums ? p.sums.template data<double>() : nullptr;
  out.per_token_loss = floats(p.per_token_loss);
  out.sequence_losses = floats(p.sequence_losses);
  out.sequence_tokens = p.sequence_tokens ? p.sequence_tokens.template data<int32_t>() : nullptr;
  if constexpr (requires { p.d_entropies; }) out.d_entropies = floats(p.d_entropies);
  return out;
}

}  // namespace varlen::loss
