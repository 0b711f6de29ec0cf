#pragma once

#include <vector>

#include "core/cross-entropy-device.h"
#include "core/cross-entropy.h"
#include "core/emulated.h"
#include "core/op_test.h"

// For tests of both cross entropies in the emulator: cases, and what surrounds their rows.
namespace varlen::testing {

// Every fifth token masked, every seventh without weight; or all alike.
inline CrossEntropyTokens MakeTokens(int64_t num_tokens, int64_t vocab_size, bool some) {
  std::vector<int32_t> targets;
  std::vector<double> weights;
  Tensor mask = Tensor::Empty(DType::kU8, {num_tokens});
  for (int64_t t = 0; t < num_tokens; ++t) {
    targets.push_back(static_cast<int32_t>((t * 7919 + 3) % vocab_size));
    mask.data<uint8_t>()[t] = t % 5 != 3;
    weights.push_back(t % 7 == 2 ? 0 : 0.25 * static_cast<double>(t % 4 + 1));
  }
  CrossEntropyTokens tokens;
  tokens.target_ids = Host(targets);
  if (!some) return tokens;
  tokens.loss_mask = mask;
  tokens.weights = FromValues(DType::kF32, {num_tokens}, weights);
  return tokens;
}

inline CrossEntropyOptions EveryOption(bool normalize) {
  return {0.75f, 3.0f, 1.25f, 0.125f, 0.0625f, 0.5, normalize};
}

// `outputs`: those of the forward pass.
inline CrossEntropyUpstream MakeUpstream(int64_t num_tokens, const std::vector<Tensor>& outputs) {
  CrossEntropyUpstream up;
  up.d_loss = FromValues(DType::kF32, {}, {1.5});
  up.d_per_token = Random(DType::kF32, {num_tokens}, 11);
  up.d_logprobs = Random(DType::kF32, {num_tokens}, 12);
  up.d_entropies = Random(DType::kF32, {num_tokens}, 13);
  up.entropies = outputs[3];
  up.lse = outputs[4];
  return up;
}

// The arrays of one call in emulated device memory. The backward pass reads what the forward pass
// left here, not the upstream's copies.
struct EmulatedCrossEntropy {
  DeviceCrossEntropy options;
  int64_t num_rows, vocab_size;
  simt::GlobalArray<uint8_t> mask;
  simt::GlobalArray<float> weights, d_loss, d_per_token, d_logprobs, d_entropies;
  simt::GlobalArray<float> loss{1}, per_token, logprobs, entropies;
  simt::GlobalArray<double> losses, lse, factor{1}, bad{2};

  EmulatedCrossEntropy(const CrossEntropyTokens& tokens, const CrossEntropyOptions& o,
                       const CrossEntropyUpstream& up, int64_t num_rows, int64_t vocab_size)
      : options{o.label_smoothing, o.z_loss, o.scale, o.normalize},
        num_rows(num_rows),
        vocab_size(vocab_size),
        mask(Upload<uint8_t>(tokens.loss_mask)),
        weights(Upload<float>(tokens.weights)),
        d_loss(Upload<float>(up.d_loss)),
        d_per_token(Upload<float>(up.d_per_token)),
        d_logprobs(Upload<float>(up.d_logprobs)),
        d_entropies(Upload<float>(up.d_entropies)),
        per_token(num_rows),
        logprobs(num_rows),
        entropies(num_rows),
        losses(num_rows),
        lse(num_rows) {}

  CrossEntropySink sink() const {
    return {options,         losses.data(),    per_token.data(),
            logprobs.data(), entropies.data(), lse.data()};
  }
  CrossEntropyTotals::Params totals() const {
    return {options,  Given(mask),   Given(weights), losses.data(),
            num_rows, factor.data(), loss.data(),    bad.data()};
  }
  // The backward pass makes its own factor.
  CrossEntropyTotals::Params factor_alone() {
    factor[0] = NAN;
    return {options,  Given(mask),   Given(weights), nullptr,
            num_rows, factor.data(), nullptr,        nullptr};
  }
  CrossEntropySource source() const {
    return {options,       Given(mask),        Given(weights),    factor.data(),
            d_loss.data(), d_per_token.data(), d_logprobs.data(), d_entropies.data(),
            lse.data(),    entropies.data(),   vocab_size};
  }
  // In the order of the ops' outputs.
  std::vector<Doubles> outputs() const {
    return {Widen(loss), Widen(per_token), Widen(logprobs), Widen(entropies), Widen(lse)};
  }
};

}  // namespace varlen::testing
