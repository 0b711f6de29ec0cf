#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/policy-loss/policy-loss.h"

// What the tests of this op share: batches as vectors of doubles, runs of the op and of the
// reference, all legal configurations.
namespace varlen::policy_loss::testing {

using Doubles = std::vector<double>;
using Ints = std::vector<int32_t>;
using Bytes = std::vector<uint8_t>;

struct Case {
  Ints cu_seqlens{0};
  Doubles logprobs, old_logprobs, ref_logprobs, rollout_logprobs;
  Bytes loss_mask, kl_mask;  // empty: absent
  Doubles advantages;        // per sequence or per token
  bool advantages_per_token = false;
  Doubles token_weights;  // empty: absent
  Doubles seq_scale;
  Doubles entropies;  // empty: absent
  loss::Config config;
  bool lean = false;        // without the outputs that are optional: the CPU has a path of its own
  bool check_plan = false;  // otherwise the hash is that of the mask

  int64_t num_tokens() const { return static_cast<int64_t>(logprobs.size()); }
  int64_t num_seqs() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
  Ints Lengths() const;  // active tokens
};

struct Results {
  Status status;
  double loss = 0;
  Doubles d_logprobs, per_token_loss, sequence_losses, sums;
  Ints sequence_tokens;
};

// The op in float32; `dtype` is that of the log-probabilities. Arrays that the configuration does
// not read are left out. Outputs are filled with NaN first.
Results RunOp(const Case& c, DType dtype = DType::kF32);
// The reference on float64 tensors.
Results RunDouble(const Case& c);

// Sequences of these lengths with random values; ratios up to about 2, some tokens masked.
Case Random(const Ints& lengths, uint64_t seed);
// Rounds every value to float, so that the reference sees what the op sees.
void RoundToFloat(Case& c);

struct Variant {
  std::string name;
  loss::Config config;
  bool lean = false;
};
// Every legal pair of a level and a rule, times every KL estimate and its importance weight.
std::vector<Variant> AllVariants();
// Every legal pair of a level and a rule, without KL.
std::vector<Variant> AllRules();
// The same, each once as it is and once lean.
std::vector<Variant> AllRulesTwice();

// Sequence i of a case alone.
Case Alone(const Case& c, int64_t i);

// Infinite where one of the two is NaN.
double LargestError(const Doubles& a, const Doubles& b);
double LargestOf(const Doubles& a);
// Same bits.
bool SameBits(const Doubles& a, const Doubles& b);

}  // namespace varlen::policy_loss::testing
