#pragma once

#include "core/cross-entropy-device.h"
#include "core/cross-entropy.h"
#include "core/cuda/launch.h"
#include "core/row-softmax-cuda.h"

// What the two cross entropies do alike on a GPU, around the passes over their rows.
namespace varlen {

// The tokens of a task in device memory.
struct CrossEntropyOnGpu {
  cuda::Launch& launch;
  const CrossEntropyTokens& tokens;
  DeviceCrossEntropy options;
  const int32_t* targets;
  const uint8_t* mask;
  const float* weights;
  int64_t num_rows, vocab_size;
  double* factor;       // [1]
  double* bad_weights;  // [2]

  CrossEntropyOnGpu(cuda::Launch& launch, const CrossEntropyTokens& tokens,
                    const CrossEntropyOptions& o, int64_t num_rows, int64_t vocab_size)
      : launch(launch),
        tokens(tokens),
        options{o.label_smoothing, o.z_loss, o.scale, o.normalize},
        targets(launch.DataOf(tokens.target_ids)),
        mask(cuda::Launch::DataOf<uint8_t>(tokens.loss_mask)),
        weights(cuda::Launch::DataOf<float>(tokens.weights)),
        num_rows(num_rows),
        vocab_size(vocab_size),
        factor(launch.Scratch<double>(1)),
        bad_weights(launch.Scratch<double>(2)) {}

  CrossEntropySink SinkInto(double* losses, const CrossEntropyOutputs& out) const {
    return {options,
            losses,
            out.per_token.data<float>(),
            out.logprobs.data<float>(),
            out.entropies.data<float>(),
            out.lse.data<double>()};
  }
  CrossEntropySource SourceOf(const CrossEntropyUpstream& up) const {
    using cuda::Launch;
    return {options,
            mask,
            weights,
            factor,
            Launch::DataOf<float>(up.d_loss),
            Launch::DataOf<float>(up.d_per_token),
            Launch::DataOf<float>(up.d_logprobs),
            Launch::DataOf<float>(up.d_entropies),
            up.lse.data<double>(),
            Launch::DataOf<float>(up.entropies),
            vocab_size};
  }
  // The factor, and the loss of the rows' losses where they are given; what is wrong with weights
  // and targets is told when the task is done. In both passes: a gradient of a wrong target would
  // be silent.
  void Total(const double* losses, float* loss) const {
    launch.Run<CrossEntropyTotals>(
        1, {options, mask, weights, losses, num_rows, factor, loss, bad_weights});
    auto* found = launch.Scratch<double>(2);
    launch.Run<DeviceTargetCheck>(1, {mask, weights, targets, num_rows, vocab_size, found});
    launch.OnDone([found = launch.ReadBack<double>(found, 2),
                   bad_weights = launch.ReadBack<double>(bad_weights, 2), ids = tokens.target_ids,
                   vocab_size = vocab_size] { return Judge(bad_weights, found, ids, vocab_size); });
  }

 private:
  // What is wrong first, row by row and weights before targets, as on the CPU.
  static Status Judge(const double* bad_weights, const double* found,
                      const HostOrTensor<int32_t>& targets, int64_t vocab_size) {
    const bool weight = bad_weights[0] > 0 && (found[0] == 0 || bad_weights[1] <= found[1]);
    return weight ? JudgeWeights(bad_weights)
                  : JudgeTargets(found, targets, vocab_size, ", or lossMask 0");
  }
};

}  // namespace varlen
