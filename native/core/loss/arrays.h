#pragma once

#include <cstdint>

#include "core/dtype.h"

// What the policy loss reads and writes, on the host or on a device.
namespace varlen::loss {

inline constexpr int64_t kBlock = 1024;  // tokens

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

}  // namespace varlen::loss
