#pragma once

#include <string>

#include "core/cuda/launch.h"
#include "core/cuda/offsets.h"
#include "core/jsd-words-device.h"
#include "core/jsd.h"
#include "core/loss/loss.h"
#include "core/row-softmax-cuda.h"

// What the two divergences do alike on a GPU, around the passes over their rows.
namespace varlen::jsd {

inline DeviceOptions DeviceOptionsOf(const JsdOptions& o) {
  return DeviceOptionsOf(o.beta, o.temperature, o.softcap, o.logit_scale, o.teacher_floor,
                         o.loss_scale);
}

// Once the divergences of the tokens are there: their coefficients, how many count, the loss.
inline void WeighOnGpu(cuda::Launch& launch, const JsdTokens& tokens, int64_t num_tokens,
                       const JsdOutputs& out) {
  using cuda::Launch;
  // Sequences are found by halving, which no offsets lead astray.
  const int32_t* cu_seqlens = launch.DataOf(tokens.cu_seqlens);
  auto* bad = launch.Scratch<double>(2);
  launch.Run<DeviceWeights>(
      1, {Launch::DataOf<uint8_t>(tokens.loss_mask), Launch::DataOf<float>(tokens.weights),
          Launch::DataOf<float>(tokens.logprobs), Launch::DataOf<float>(tokens.old_logprobs),
          cu_seqlens, launch.DataOf(tokens.seq_scale), num_tokens, tokens.seq_scale.size(),
          tokens.is_clip, out.per_token.data<float>(), out.coefficients.data<float>(),
          out.loss.data<float>(), out.tokens.data<double>(), bad});
  if (tokens.cu_seqlens && !tokens.cu_seqlens.on_host()) {
    launch.OnDone(
        [cu = cuda::ReadBack(launch, tokens.cu_seqlens), num_seqs = tokens.seq_scale.size(),
         num_tokens] { return loss::CheckCuSeqlens(cu.OnHost().data(), num_seqs, num_tokens); });
  }
  launch.OnDone([bad = launch.ReadBack<double>(bad, 2)] { return JudgeWeights(bad); });
}

// Stored words outside the vocabulary or repeated, by the problems that the rows' kernel has left.
inline void CheckWordsWhenDone(cuda::Launch& launch, const int32_t* problems, const Tensor& words,
                               int64_t vocab_size) {
  using Check = DeviceWordProblems;
  auto* found = launch.Scratch<int32_t>(Check::kNumFound);
  launch.Run<Check>(
      1, {problems, words.data<int32_t>(), words.shape[0], words.shape[1], vocab_size, found});
  launch.OnDone([found = launch.ReadBack<int32_t>(found, Check::kNumFound),
                 vocab_size]() -> Status {
    if (found[Check::kProblem] == kNoProblem) return {};
    const bool twice = found[Check::kProblem] == kTwice;
    Status status = Invalid(
        Code::kIndex, "ids", twice ? "has a word twice" : "is outside the vocabulary",
        std::to_string(found[Check::kWord]) + " in row " + std::to_string(found[Check::kToken]),
        twice ? "words that differ" : "0.." + std::to_string(vocab_size - 1) + ", or lossMask 0");
    status.details = {{"row", static_cast<double>(found[Check::kToken])}};
    return status;
  });
}

}  // namespace varlen::jsd
