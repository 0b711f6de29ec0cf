#pragma once

#include "core/emulated.h"
#include "core/loss/batch.h"
#include "core/loss/device.h"

// For tests: the loss between the two passes over rows, its kernels run by the host emulator.
namespace varlen::testing {

// What the kernels take of device memory beside inputs and outputs.
struct EmulatedLossScratch {
  simt::GlobalArray<double> first, first_sums, partials, rows;
  simt::GlobalArray<loss::SequenceState> sequences;
  simt::GlobalArray<float> inverse_mean{1};
  simt::GlobalArray<loss::DeviceReport> report{1};

  EmulatedLossScratch(int64_t num_tokens, int64_t num_seqs)
      : first(loss::NumSlots(num_tokens, num_seqs) * loss::kFirstDoubles),
        first_sums(num_seqs * loss::kFirstDoubles),
        partials(loss::NumSlots(num_tokens, num_seqs) * loss::kRowDoubles),
        rows(num_seqs * loss::kRowDoubles),
        sequences(num_seqs) {}
  void LendTo(loss::DeviceArguments* p) const {
    p->first = first.data();
    p->first_sums = first_sums.data();
    p->partials = partials.data();
    p->rows = rows.data();
    p->sequences = sequences.data();
    p->inverse_mean = inverse_mean.data();
    p->report = report.data();
  }
};

// The loss of log-probabilities and entropies that a pass over rows has left.
struct EmulatedLoss {
  simt::GlobalArray<float> total{1}, d_logprobs, d_entropies;
  simt::GlobalArray<double> sums{loss::kNumSums};

  EmulatedLoss(const loss::Batch& batch, const loss::Config& config, const float* logprobs,
               const float* entropies, int64_t num_tokens, uint64_t seed)
      : d_logprobs(num_tokens), d_entropies(num_tokens) {
    const int64_t seqs = batch.num_seqs();
    const auto cu = Upload(batch.cu_seqlens);
    const auto old = Upload<float>(batch.old_logprobs), ref = Upload<float>(batch.ref_logprobs),
               advantages = Upload(batch.advantages), weights = Upload(batch.token_weights),
               scale = Upload(batch.seq_scale);
    const auto mask = Upload<uint8_t>(batch.loss_mask), kl_mask = Upload<uint8_t>(batch.kl_mask);
    const EmulatedLossScratch scratch(num_tokens, seqs);
    loss::DeviceArguments p{};
    p.config = config;
    p.in.num_tokens = num_tokens;
    p.in.num_seqs = seqs;
    p.in.cu_seqlens = cu.data();
    p.in.logprobs = logprobs;
    if (config.reads_old()) p.in.old_logprobs = Given(old);
    p.in.ref_logprobs = Given(ref);
    p.in.loss_mask = Given(mask);
    p.in.kl_mask = Given(kl_mask);
    p.in.advantages = advantages.data();
    p.in.token_weights = Given(weights);
    p.in.seq_scale = scale.data();
    p.in.entropies = entropies;
    p.out.loss = total.data();
    p.out.d_logprobs = d_logprobs.data();
    p.out.sums = sums.data();
    p.out.d_entropies = d_entropies.data();
    scratch.LendTo(&p);
    loss::LaunchPasses<float>(p, true,
                              [&]<class Kernel>(int64_t, const loss::DeviceArguments& params) {
                                Emulate<Kernel>(1, params, seed);
                                return true;
                              });
  }
};

}  // namespace varlen::testing
