#pragma once

#include <vector>

#include "core/linear-head.h"
#include "core/loss/batch.h"
#include "core/loss/config.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"
#include "core/vocabulary-shard.h"

// The policy loss from hidden states and the head's weight, without the logits:
//
//   z[t, v]      = cap(hidden[t] . weight[v] + bias[v]) / temperature
//   logprobs[t]  = z[t, y_t] - lse[t]
//   entropies[t] = lse[t] - sum_v p[t, v] z[t, v]
//   loss         = the policy loss of those two (core/loss)
//
//   dz[t, v] = c_t (1[v = y_t] - p[t, v]) - e_t p[t, v] (ln p[t, v] + entropies[t])
//
// with c_t = d loss / d logprobs[t] and e_t = d loss / d entropies[t]. Tiles of logits are
// computed, reduced and computed again for the gradient (core/linear-logits.h); a buffer of tokens
// x vocabulary never exists. Rows with lossMask 0 are never read.
//
// The vocabulary may lie on several ranks (core/vocabulary-shard.h): the ranks' statistics together
// are an input of Forward, Backward gives the gradients of this rank's words and this rank's share
// of dHidden.
namespace varlen::policy_loss_from_hidden {

struct Options {
  HostOrTensor<int32_t> target_ids;  // [totalTokens]; read where lossMask is 1
  float temperature = 1;
  float softcap = 0;  // 0: off

  template <class Visitor>
  void Visit(Visitor& v) {
    v.HostOrTensor("targetIds", target_ids, {"totalTokens"}, Need::kRequired);
    v.Scalar("temperature", temperature);
    v.Scalar("softcap", softcap);
  }
  LogitShape shape() const { return {temperature, softcap, 1}; }
  Status Validate(int64_t total_tokens) const;
};

struct Forward {
  static constexpr const char* kName = "policyLossFromHidden";
  static constexpr bool kOnGpu = true;

  LinearHead head;
  Options options;
  VocabularyShard shard;
  Tensor statistics;  // [kNumRowStatistics, totalTokens] float64 of all ranks; absent: not split
  loss::Batch batch;
  loss::Config config;
  bool per_token = false, per_sequence = false;  // which optional outputs are wanted
  bool want_sum_squares = false;
  Tensor loss;             // [] float32
  Tensor d_logprobs;       // [totalTokens] float32: c_t for a gradient of the loss of 1
  Tensor sums;             // [loss::kNumSums] float64: what statistics are made of
  Tensor logprobs;         // [totalTokens] float32; this and the next three are 0 where masked
  Tensor entropies;        // [totalTokens] float32
  Tensor lse;              // [totalTokens] float64
  Tensor d_entropies;      // [totalTokens] float32: e_t; only with an entropy bonus
  Tensor sum_squares;      // [totalTokens] float32, sum_v p^2
  Tensor per_token_loss;   // [totalTokens] float32
  Tensor sequence_losses;  // [numSeqs] float32
  Tensor sequence_tokens;  // [numSeqs] int32

  template <class Visitor>
  void Visit(Visitor& v) {
    head.Visit(v);
    options.Visit(v);
    shard.Visit(v);
    v.In("statistics", statistics, kFloat64, {kNumRowStatisticsName, "totalTokens"},
         Layout::kContiguous, Need::kOptional);
    batch.Visit(v);
    config.Visit(v);
    v.Flag("perToken", per_token);
    v.Flag("perSequence", per_sequence);
    v.Flag("wantSumSquares", want_sum_squares);
    v.Out("loss", loss, kFloat32, {});
    v.Out("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.Out("sums", sums, kFloat64, {loss::kNumSumsName});
    v.Out("logprobs", logprobs, kFloat32, {"totalTokens"});
    v.Out("entropies", entropies, kFloat32, {"totalTokens"});
    v.Out("lse", lse, kFloat64, {"totalTokens"});
    v.Out("dEntropies", d_entropies, kFloat32, {"totalTokens"}, config.entropy_coef != 0);
    v.Out("sumSquares", sum_squares, kFloat32, {"totalTokens"}, want_sum_squares);
    v.Out("perTokenLoss", per_token_loss, kFloat32, {"totalTokens"}, per_token);
    v.Out("sequenceLosses", sequence_losses, kFloat32, {"numSeqs"}, per_sequence);
    v.Out("sequenceTokens", sequence_tokens, kInt32, {"numSeqs"}, per_sequence);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "policyLossFromHiddenBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_loss;                           // [] float32; absent: 0
  Tensor d_logprobs_out, d_entropies_out;  // [totalTokens] float32: of those outputs; absent: 0
  LinearHead head;
  Options options;
  VocabularyShard shard;
  double tile_filter = 0;  // tiles whose |du| all are below this times max |c_t| are left out
  Tensor loss_mask;        // [totalTokens] uint8, absent: all 1
  Tensor d_logprobs, d_entropies, lse, entropies;  // of Forward; d_entropies may be absent
  LinearHeadGradients gradients;

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.In("dLoss", d_loss, kFloat32, {}, kDense, Need::kOptional);
    v.In("dLogprobsOut", d_logprobs_out, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("dEntropiesOut", d_entropies_out, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    head.Visit(v);
    options.Visit(v);
    shard.Visit(v);
    v.Scalar("tileFilter", tile_filter);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    v.In("dLogprobs", d_logprobs, kFloat32, {"totalTokens"});
    v.In("dEntropies", d_entropies, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("lse", lse, kFloat64, {"totalTokens"});
    v.In("entropies", entropies, kFloat32, {"totalTokens"});
    gradients.Visit(v);
  }
  Status Validate() const;
};

// Rows that count and their targets; refuses targets outside the vocabulary.
Status ActiveRows(const Options& options, const Tensor& loss_mask, int64_t total_tokens,
                  int64_t vocab_size, std::vector<int32_t>* rows, std::vector<int32_t>* targets);

// Picks the device of hidden. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64 from inputs of any float dtype, written straight from the formulas; outputs
// are float64 tensors (sequence_tokens int32), of which those that are absent are left out.
// Forward and Backward are those of a whole vocabulary: parts are tested by what they add up to.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::policy_loss_from_hidden
