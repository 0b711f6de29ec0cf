#pragma once

#include "core/linear-logits-device.h"

// What the policy loss puts into the kernels of linear-logits-device.h; its forward statistics go
// to LossRowSink, the loss between the passes is core/loss/device.h.
namespace varlen::policy_loss_from_hidden {

// Gradients that come back; null where absent. c = d_loss d_logprobs + d_logprobs_out, likewise e.
struct RowSource {
  const uint8_t* mask;           // [total_tokens]
  const float* d_loss;           // [1]
  const float* d_logprobs;       // [total_tokens], of the forward pass, like the next
  const float* d_entropies;      // [total_tokens]
  const float* d_logprobs_out;   // [total_tokens], of those outputs
  const float* d_entropies_out;  // [total_tokens]
  const float* entropies;        // [total_tokens], of the forward pass

  SIMT_FN RowGradient Of(int64_t row) const {
    if (!RowCounts(mask, nullptr, row)) return {};
    const double factor = At(d_loss, 0);
    const double c = factor * At(d_logprobs, row) + At(d_logprobs_out, row);
    const double e = factor * At(d_entropies, row) + At(d_entropies_out, row);
    const double entropy = e == 0 ? 0 : At(entropies, row);
    return {static_cast<float>(-c - e * entropy), static_cast<float>(-e), 0, static_cast<float>(c)};
  }

 private:
  static SIMT_FN double At(const float* array, int64_t i) {
    return array == nullptr ? 0.0f : simt::Load(array + i);
  }
};

}  // namespace varlen::policy_loss_from_hidden
