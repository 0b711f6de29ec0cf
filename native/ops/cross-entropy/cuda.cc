#include "core/dispatch.h"
#include "core/row-softmax-cuda.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/cross-entropy/kernels.h"

// The CUDA implementation: rows of logits, then a sum over rows whose order is fixed.
namespace varlen::cross_entropy {
namespace {

using cuda::Launch;

DeviceCrossEntropy OptionsOf(const CrossEntropyOptions& o) {
  return {o.label_smoothing, o.z_loss, o.scale, o.normalize};
}

template <class T>
DeviceLogits<T> LogitsOf(const Tensor& logits, const CrossEntropyTokens& tokens,
                         const int32_t* targets, const CrossEntropyOptions& o) {
  DeviceLogits<T> in = LogitsOnGpu<T>(logits, targets, {o.temperature, o.softcap, o.logit_scale});
  in.mask = Launch::DataOf<uint8_t>(tokens.loss_mask);
  in.weights = Launch::DataOf<float>(tokens.weights);
  return in;
}

// What is wrong first, row by row and weights before targets, as on the CPU.
Status Judge(const double* bad_weights, const double* found, const HostOrTensor<int32_t>& targets,
             int64_t vocab_size) {
  const bool weight = bad_weights[0] > 0 && (found[0] == 0 || bad_weights[1] <= found[1]);
  if (!weight) return JudgeTargets(found, targets, vocab_size, ", or lossMask 0");
  return Invalid(Code::kWeight, "weights", "must be finite and not negative",
                 "weights[" + std::to_string(static_cast<int64_t>(bad_weights[1])) + "] and " +
                     std::to_string(static_cast<int64_t>(bad_weights[0]) - 1) + " more",
                 ">= 0");
}

// Bad targets and weights, in both passes: a gradient of a wrong target would be silent.
void CheckWhenDone(Launch& launch, const CrossEntropyTokens& tokens, const int32_t* targets,
                   const double* bad_weights, int64_t num_rows, int64_t vocab_size) {
  auto* found = launch.Scratch<double>(2);
  launch.Run<DeviceTargetCheck>(
      1, {Launch::DataOf<uint8_t>(tokens.loss_mask), Launch::DataOf<float>(tokens.weights), targets,
          num_rows, vocab_size, found});
  launch.OnDone([found = launch.ReadBack<double>(found, 2),
                 bad_weights = launch.ReadBack<double>(bad_weights, 2), ids = tokens.target_ids,
                 vocab_size] { return Judge(bad_weights, found, ids, vocab_size); });
}

template <class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const int64_t num_rows = p.logits.shape[0], vocab_size = p.logits.shape[1];
  const int32_t* targets = launch.DataOf(p.tokens.target_ids);
  const DeviceCrossEntropy options = OptionsOf(p.options);
  const DeviceLogits<T> in = LogitsOf<T>(p.logits, p.tokens, targets, p.options);
  auto* losses = launch.Scratch<double>(num_rows);
  auto* bad_weights = launch.Scratch<double>(2);
  launch.Run<Rows<T>>(
      num_rows, {in,
                 {options, losses, p.out.per_token.data<float>(), p.out.logprobs.data<float>(),
                  p.out.entropies.data<float>(), p.out.lse.data<double>()}});
  launch.Run<CrossEntropyTotals>(
      1, {options, in.mask, in.weights, losses, num_rows, launch.Scratch<double>(1),
          p.out.loss.data<float>(), bad_weights});
  CheckWhenDone(launch, p.tokens, targets, bad_weights, num_rows, vocab_size);
  return launch.status();
}

template <class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const int64_t num_rows = p.logits.shape[0], vocab_size = p.logits.shape[1];
  if (p.logits.size() == 0) return {};
  const int32_t* targets = launch.DataOf(p.tokens.target_ids);
  const DeviceCrossEntropy options = OptionsOf(p.options);
  const DeviceLogits<T> in = LogitsOf<T>(p.logits, p.tokens, targets, p.options);
  auto* factor = launch.Scratch<double>(1);
  auto* bad_weights = launch.Scratch<double>(2);
  launch.Run<CrossEntropyTotals>(
      1, {options, in.mask, in.weights, nullptr, num_rows, factor, nullptr, bad_weights});
  const CrossEntropyUpstream& up = p.upstream;
  launch.Run<Gradients<T>>(
      num_rows, {in,
                 up.lse.data<double>(),
                 {options, in.mask, in.weights, factor, Launch::DataOf<float>(up.d_loss),
                  Launch::DataOf<float>(up.d_per_token), Launch::DataOf<float>(up.d_logprobs),
                  Launch::DataOf<float>(up.d_entropies), up.lse.data<double>(),
                  Launch::DataOf<float>(up.entropies), vocab_size},
                 p.d_logits.data<T>(),
                 p.d_logits.strides[0],
                 AlignedRows(p.d_logits)});
  CheckWhenDone(launch, p.tokens, targets, bad_weights, num_rows, vocab_size);
  return launch.status();
}

}  // namespace

Status RunCuda(const Forward& p) {
  return DispatchDType<float, bfloat16, half>(p.logits.dtype, "logits",
                                              [&]<class T>() { return LaunchForward<T>(p); });
}

Status RunCuda(const Backward& p) {
  return DispatchDType<float, bfloat16, half>(p.logits.dtype, "logits",
                                              [&]<class T>() { return LaunchBackward<T>(p); });
}

}  // namespace varlen::cross_entropy
