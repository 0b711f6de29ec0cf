#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/loss/arrays.h"
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

inline constexpr int64_t kReductionLanes = 16;

// Something wrong with values, found at active tokens.
struct Problem {
  int64_t count = 0;
  int64_t first = std::numeric_limits<int64_t>::max();  // token
  void Add(int64_t token) {
    ++count;
    first = std::min(first, token);
  }
  void Merge(const Problem& other) {
    count += other.count;
    first = std::min(first, other.first);
  }
};
// Problems of the whole call.
struct Problems {
  Problem non_finite, positive, bad_weight, missing;
};

// What a call with these problems, over lengths with this hash, is told.
Status Judge(const Config& config, const Problems& problems, uint32_t hash_low, uint32_t hash_high);

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
