#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/loss/config.h"
#include "core/status.h"
#include "core/tensor.h"

// The policy loss on packed log-probabilities, shared by every op that ends in it: they differ in
// where the log-probabilities come from and where their gradient goes. Formulas: config.h,
// rules-inl.h.
//
// Reductions are the same bits for any number of threads: blocks of 1024 tokens counted from each
// sequence's start, 16 fixed lanes inside a block (lane = offset mod 16), lanes added by a fixed
// tree, blocks and then sequences in index order in float64.
namespace varlen::loss {

inline constexpr int64_t kBlock = 1024;  // tokens
inline constexpr int64_t kReductionLanes = 16;

// Null pointers stand for absent arrays. Lengths: num_tokens (T) or num_seqs (S).
struct Inputs {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  const int32_t* cu_seqlens = nullptr;  // [S + 1]
  const void* logprobs = nullptr;       // [T], float, half or bfloat16
  DType logprobs_dtype = DType::kF32;
  const float* old_logprobs = nullptr;      // [T]
  const float* ref_logprobs = nullptr;      // [T]
  const float* rollout_logprobs = nullptr;  // [T]
  const float* kept_log_mass = nullptr;     // [T]
  const uint8_t* loss_mask = nullptr;       // [T]
  const uint8_t* kl_mask = nullptr;         // [T]
  const float* advantages = nullptr;        // [S] or [T]
  bool advantages_per_token = false;
  const float* token_weights = nullptr;  // [T]
  const float* seq_scale = nullptr;      // [S]
  const float* entropies = nullptr;      // [T]
};

struct Outputs {
  float* loss = nullptr;               // [1]
  float* d_logprobs = nullptr;         // [T], 0 at masked positions
  double* sums = nullptr;              // [kNumSums]
  float* per_token_loss = nullptr;     // [T] or null: the bracket, without s_i
  float* sequence_losses = nullptr;    // [S] or null: sum of the bracket
  int32_t* sequence_tokens = nullptr;  // [S] or null: active tokens
  float* d_entropies = nullptr;        // [T] or null: derivative of the loss by each H_t
};

// Computes every output, then reports what is wrong with the values, if anything.
Status Evaluate(const Config& config, const Inputs& in, const Outputs& out);

// cu_seqlens against the token axis: starts at 0, never falls, ends at num_tokens.
Status CheckCuSeqlens(const int32_t* cu_seqlens, int64_t num_seqs, int64_t num_tokens);

// The same in float64 as plain loops, from a transcription of the formulas of its own. Empty
// vectors stand for absent arrays.
struct ReferenceInputs {
  std::vector<int32_t> cu_seqlens;
  std::vector<double> logprobs, old_logprobs, ref_logprobs, rollout_logprobs, kept_log_mass;
  std::vector<uint8_t> loss_mask, kl_mask;
  std::vector<double> advantages;
  bool advantages_per_token = false;
  std::vector<double> token_weights, seq_scale, entropies;
};
struct ReferenceOutputs {
  double loss = 0;
  std::vector<double> d_logprobs, per_token_loss, sequence_losses, d_entropies;
  std::vector<double> sums;  // kNumSums
};
ReferenceOutputs EvaluateReference(const Config& config, const ReferenceInputs& in);

// Elements of a float tensor of any dtype, in row-major order.
std::vector<double> ReadDoubles(const Tensor& tensor);

}  // namespace varlen::loss
