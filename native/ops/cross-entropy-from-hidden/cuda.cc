#include "core/cross-entropy-cuda.h"
#include "core/dispatch.h"
#include "core/linear-head-cuda.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"
#include "ops/cross-entropy-from-hidden/kernels.h"

// The CUDA implementation: the core's tiles of logits, then a sum over rows whose order is fixed.
namespace varlen::cross_entropy_from_hidden {
namespace {

using cuda::Launch;

template <class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const int64_t num_rows = p.head.total_tokens();
  const CrossEntropyOnGpu tokens(launch, p.tokens, p.options, num_rows, p.head.vocab_size());
  auto* losses = launch.Scratch<double>(num_rows);
  StatisticsOnGpu<T>(launch, HeadOnGpu<T>(p.head, tokens.targets, p.options.shape()),
                     {tokens.mask, tokens.weights}, tokens.SinkInto(losses, p.out));
  tokens.Total(losses, p.out.loss.data<float>());
  return launch.status();
}

template <class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const CrossEntropyOnGpu tokens(launch, p.tokens, p.options, p.head.total_tokens(),
                                 p.head.vocab_size());
  tokens.Total(nullptr, nullptr);
  DifferentiateOnGpu<T>(launch, HeadOnGpu<T>(p.head, tokens.targets, p.options.shape()),
                        tokens.SourceOf(p.upstream), p.upstream.lse.data<double>(), p.gradients);
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

}  // namespace varlen::cross_entropy_from_hidden
