#include "core/cross-entropy-cuda.h"
#include "core/dispatch.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/cross-entropy/kernels.h"

// The CUDA implementation: rows of logits, then a sum over rows whose order is fixed.
namespace varlen::cross_entropy {
namespace {

using cuda::Launch;

template <class T>
DeviceLogits<T> LogitsOf(const Tensor& logits, const CrossEntropyOnGpu& tokens,
                         const CrossEntropyOptions& o) {
  DeviceLogits<T> in =
      LogitsOnGpu<T>(logits, tokens.targets, {o.temperature, o.softcap, o.logit_scale});
  in.mask = tokens.mask;
  in.weights = tokens.weights;
  return in;
}

template <class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const int64_t num_rows = p.logits.shape[0];
  const CrossEntropyOnGpu tokens(launch, p.tokens, p.options, num_rows, p.logits.shape[1]);
  auto* losses = launch.Scratch<double>(num_rows);
  launch.Run<Rows<T>>(num_rows,
                      {LogitsOf<T>(p.logits, tokens, p.options), tokens.SinkInto(losses, p.out)});
  tokens.Total(losses, p.out.loss.data<float>());
  return launch.status();
}

template <class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  if (p.logits.size() == 0) return {};
  const int64_t num_rows = p.logits.shape[0];
  const CrossEntropyOnGpu tokens(launch, p.tokens, p.options, num_rows, p.logits.shape[1]);
  tokens.Total(nullptr, nullptr);
  launch.Run<Gradients<T>>(
      num_rows, {LogitsOf<T>(p.logits, tokens, p.options), p.upstream.lse.data<double>(),
                 tokens.SourceOf(p.upstream), p.d_logits.data<T>(), p.d_logits.strides[0],
                 AlignedRows(p.d_logits)});
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
