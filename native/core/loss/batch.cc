#include "core/loss/batch.h"

#include <string>

namespace varlen::loss {
namespace {

Status WrongSize(const char* name, int64_t got, const std::string& expected) {
  return Invalid(Code::kShape, name, "has the wrong length", std::to_string(got), expected);
}

Status Missing(const char* name, const char* why) {
  return Invalid(Code::kMissingInput, name, std::string("is required by ") + why, "nothing",
                 "a tensor");
}

Status Superfluous(const char* name, const std::string& why) {
  return Invalid(Code::kIncompatible, name, why, "a tensor", "none");
}

// Each input that the configuration reads is there, and none that it would silently ignore.
Status CheckPresence(const Batch& batch, const Config& config) {
  const bool bypass = config.rollout() == Correction::kBypass;
  if (config.reads_old() && !bypass && !batch.old_logprobs) {
    return Missing("oldLogprobs", config.level() == Level::kNone
                                      ? "rolloutCorrection"
                                      : "the ratio; ratio.onPolicy does without");
  }
  if (config.on_policy && batch.old_logprobs) {
    return Superfluous("oldLogprobs", "has no meaning under ratio.onPolicy");
  }
  if (bypass && batch.old_logprobs) {
    return Superfluous("oldLogprobs", "is replaced by the rollout's under mode 'bypass'");
  }
  if (config.kl() != Kl::kNone && !batch.ref_logprobs) return Missing("refLogprobs", "kl");
  if (config.rollout() != Correction::kNone && !batch.rollout_logprobs) {
    return Missing("rolloutLogprobs", "rolloutCorrection");
  }
  return {};
}

// S = T fits both meanings; lengths of 1 make them one.
Status CheckAmbiguity(const Batch& batch, int64_t num_tokens) {
  if (batch.advantages_per != 0 || batch.num_seqs() != num_tokens) return {};
  const int32_t* cu = batch.cu_seqlens.data();
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (cu[i + 1] - cu[i] == 1) continue;
    return Invalid(Code::kIncompatible, "advantages",
                   "could be per sequence or per token: there are as many of both",
                   std::to_string(num_tokens) + " values", "advantagesPer: 'sequence' or 'token'");
  }
  return {};
}

Status CheckOffsets(const Batch& batch, int64_t num_tokens) {
  Status status = CheckCuSeqlens(batch.cu_seqlens.data(), batch.num_seqs(), num_tokens);
  return status.ok() ? CheckAmbiguity(batch, num_tokens) : status;
}

template <class T>
std::vector<T> Copy(const T* data, int64_t size) {
  return data == nullptr ? std::vector<T>() : std::vector<T>(data, data + size);
}

template <class T>
const T* DataOf(const HostOrTensor<T>& array) {
  return array ? array.data() : nullptr;
}
template <class T>
const T* DataOf(const Tensor& tensor) {
  return tensor ? tensor.data<T>() : nullptr;
}

}  // namespace

Status Batch::Validate(const Config& config, int64_t num_tokens) const {
  if (cu_seqlens.size() == 0) {
    return Invalid(Code::kCuSeqlens, "cuSeqlens", "must not be empty", "0 entries", "numSeqs + 1");
  }
  if (num_tokens > std::numeric_limits<int32_t>::max()) {
    return Invalid(Code::kOverflow, "logprobs", "has more tokens than int32 offsets can hold",
                   std::to_string(num_tokens), "below 2^31");
  }
  const int64_t wanted = advantages_per == 2 ? num_tokens : num_seqs();
  const bool either = advantages_per == 0 && advantages.size() == num_tokens;
  if (advantages.size() != wanted && !either) {
    const std::string both =
        std::to_string(num_seqs()) + " (sequences) or " + std::to_string(num_tokens) + " (tokens)";
    return WrongSize("advantages", advantages.size(),
                     advantages_per == 0 ? both : std::to_string(wanted));
  }
  if (token_weights && token_weights.size() != num_tokens) {
    return WrongSize("tokenWeights", token_weights.size(), std::to_string(num_tokens));
  }
  // Without a mask every weight counts, and those on the host are known. With one, see Evaluate.
  if (token_weights && token_weights.on_host() && !loss_mask) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      if (token_weights.data()[t] >= 0) continue;
      return Invalid(
          Code::kWeight, "tokenWeights", "must not be negative or NaN",
          "tokenWeights[" + std::to_string(t) + "] = " + std::to_string(token_weights.data()[t]),
          "weights >= 0");
    }
  }
  if (seq_scale.size() != num_seqs()) {
    return Invalid(Code::kPlanMismatch, "plan", "was made for another number of sequences",
                   std::to_string(seq_scale.size()), std::to_string(num_seqs()));
  }
  if (config.clip_rule() == Clip::kGmpo && PerToken(num_tokens)) {
    return Invalid(Code::kIncompatible, "advantages", "must be one per sequence under gmpo",
                   "advantages per token", std::to_string(num_seqs()) + " values");
  }
  if (Status status = CheckPresence(*this, config); !status.ok()) return status;
  return cu_seqlens.on_host() ? CheckOffsets(*this, num_tokens) : Status{};
}

Status Batch::ValidateInStream(int64_t num_tokens) const {
  return cu_seqlens.on_host() ? Status{} : CheckOffsets(*this, num_tokens);
}

Inputs Batch::ToInputs(int64_t num_tokens) const {
  Inputs in;
  in.num_tokens = num_tokens;
  in.num_seqs = num_seqs();
  in.cu_seqlens = cu_seqlens.data();
  in.old_logprobs = DataOf<float>(old_logprobs);
  in.ref_logprobs = DataOf<float>(ref_logprobs);
  in.rollout_logprobs = DataOf<float>(rollout_logprobs);
  in.kept_log_mass = DataOf<float>(kept_log_mass);
  in.loss_mask = DataOf<uint8_t>(loss_mask);
  in.kl_mask = DataOf<uint8_t>(kl_mask);
  in.advantages = DataOf(advantages);
  in.advantages_per_token = PerToken(num_tokens);
  in.token_weights = DataOf(token_weights);
  in.seq_scale = DataOf(seq_scale);
  return in;
}

ReferenceInputs Batch::ToReference(int64_t num_tokens) const {
  ReferenceInputs in;
  in.cu_seqlens = Copy(cu_seqlens.data(), cu_seqlens.size());
  in.old_logprobs = ReadDoubles(old_logprobs);
  in.ref_logprobs = ReadDoubles(ref_logprobs);
  in.rollout_logprobs = ReadDoubles(rollout_logprobs);
  in.kept_log_mass = ReadDoubles(kept_log_mass);
  in.loss_mask = Copy(DataOf<uint8_t>(loss_mask), num_tokens);
  in.kl_mask = Copy(DataOf<uint8_t>(kl_mask), num_tokens);
  const auto widen = [](const std::vector<float>& v) {
    return std::vector<double>(v.begin(), v.end());
  };
  in.advantages = widen(Copy(DataOf(advantages), advantages.size()));
  in.advantages_per_token = PerToken(num_tokens);
  if (token_weights) in.token_weights = widen(Copy(DataOf(token_weights), num_tokens));
  in.seq_scale = widen(Copy(DataOf(seq_scale), seq_scale.size()));
  return in;
}

}  // namespace varlen::loss
