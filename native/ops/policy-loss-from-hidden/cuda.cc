#include "core/loss/cuda.h"

#include "core/dispatch.h"
#include "core/linear-head-cuda.h"
#include "ops/policy-loss-from-hidden/kernels.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

// The CUDA implementation: the core's tiles of logits, the loss by core/loss/cuda.cc, and back.
namespace varlen::policy_loss_from_hidden {
namespace {

using cuda::Launch;

// In both passes: a gradient of a wrong target would be silent.
void CheckWhenDone(Launch& launch, const LinearHead& head, const Options& options,
                   const uint8_t* mask, const int32_t* targets) {
  auto* found = launch.Scratch<double>(2);
  launch.Run<DeviceTargetCheck>(
      1, {mask, nullptr, targets, head.total_tokens(), head.vocab_size(), found});
  launch.OnDone([found = launch.ReadBack<double>(found, 2), ids = options.target_ids,
                 vocab_size = head.vocab_size()] {
    return JudgeTargets(found, ids, vocab_size, ", or lossMask 0");
  });
}

template <class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  loss::Inputs in = loss::UploadInputs(launch, p.batch, p.config, p.head.total_tokens());
  const int32_t* targets = launch.DataOf(p.options.target_ids);
  CheckWhenDone(launch, p.head, p.options, in.loss_mask, targets);
  StatisticsOnGpu<T>(launch, HeadOnGpu<T>(p.head, targets, p.options.shape()),
                     {in.loss_mask, nullptr},
                     LossRowSink{p.lse.data<double>(), p.logprobs.data<float>(),
                                 p.entropies.data<float>(), Launch::DataOf<float>(p.sum_squares)});
  in.logprobs = p.logprobs.address();
  in.entropies = p.entropies.data<float>();
  loss::EvaluateOnGpu(launch, p.config, in, loss::OutputsOf(p));
  return launch.status();
}

template <class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const int32_t* targets = launch.DataOf(p.options.target_ids);
  const RowSource source{Launch::DataOf<uint8_t>(p.loss_mask),
                         Launch::DataOf<float>(p.d_loss),
                         p.d_logprobs.data<float>(),
                         Launch::DataOf<float>(p.d_entropies),
                         Launch::DataOf<float>(p.d_logprobs_out),
                         Launch::DataOf<float>(p.d_entropies_out),
                         p.entropies.data<float>()};
  CheckWhenDone(launch, p.head, p.options, source.mask, targets);
  DifferentiateOnGpu<T>(launch, HeadOnGpu<T>(p.head, targets, p.options.shape()), source,
                        p.lse.data<double>(), p.gradients);
  return launch.status();
}

}  // namespace

Status RunCuda(const Forward& p) {
  return DispatchDType<float, bfloat16, half>(p.head.hidden.dtype, "hidden",
                                              [&]<class T>() { return LaunchForward<T>(p); });
}

Status RunCuda(const Backward& p) {
  return DispatchDType<float, bfloat16, half>(p.head.hidden.dtype, "hidden",
                                              [&]<class T>() { return LaunchBackward<T>(p); });
}

}  // namespace varlen::policy_loss_from_hidden
