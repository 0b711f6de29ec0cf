#include "core/loss/cuda.h"

#include "core/dispatch.h"
#include "core/row-softmax-cuda.h"
#include "ops/policy-loss-from-logits/kernels.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

// The CUDA implementation: rows of logits, the loss by core/loss/cuda.cc, and back.
namespace varlen::policy_loss_from_logits {
namespace {

using cuda::Launch;

template <class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const int64_t num_tokens = p.logits.shape[0], vocab_size = p.logits.shape[1];
  loss::Inputs in = loss::UploadInputs(launch, p.batch, p.config, num_tokens);
  const int32_t* targets = launch.DataOf(p.target_ids);
  auto* found = launch.Scratch<double>(2);
  launch.Run<DeviceTargetCheck>(1, {in.loss_mask, nullptr, targets, num_tokens, vocab_size, found});
  launch.OnDone([found = launch.ReadBack<double>(found, 2), targets = p.target_ids, vocab_size] {
    return JudgeTargets(found, targets, vocab_size, "");
  });

  DeviceLogits<T> logits =
      LogitsOnGpu<T>(p.logits, targets, {static_cast<float>(p.temperature), 0, 1});
  logits.mask = in.loss_mask;
  launch.Run<LossRows<T>>(
      num_tokens, {logits,
                   {p.lse.data<double>(), p.logprobs.data<float>(),
                    Launch::DataOf<float>(p.entropies), Launch::DataOf<float>(p.sum_squares)}});

  in.logprobs = p.logprobs.address();
  in.entropies = Launch::DataOf<float>(p.entropies);
  loss::EvaluateOnGpu(launch, p.config, in, loss::OutputsOf(p));
  return launch.status();
}

template <class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const Tensor &from = p.source(), &to = p.target();
  if (from.size() == 0) return {};
  launch.Run<RowGradients<T>>(
      from.shape[0],
      {LogitsOnGpu<T>(from, launch.DataOf(p.target_ids), {static_cast<float>(p.temperature), 0, 1}),
       p.lse.data<double>(),
       {p.d_loss.data<float>(), p.d_logprobs.data<float>(), Launch::DataOf<float>(p.d_entropies),
        Launch::DataOf<float>(p.entropies)},
       to.data<T>(),
       to.strides[0],
       AlignedRows(to)});
  return launch.status();
}

}  // namespace

Status RunCuda(const Forward& p) {
  return DispatchDType<float, bfloat16, half>(p.logits.dtype, "logits",
                                              [&]<class T>() { return LaunchForward<T>(p); });
}

Status RunCuda(const Backward& p) {
  return DispatchDType<float, bfloat16, half>(p.source().dtype, "logits",
                                              [&]<class T>() { return LaunchBackward<T>(p); });
}

}  // namespace varlen::policy_loss_from_logits
