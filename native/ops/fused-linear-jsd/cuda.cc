#include <cmath>

#include "core/dispatch.h"
#include "core/jsd-cuda.h"
#include "core/linear-head-cuda.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"
#include "ops/fused-linear-jsd/passes.h"

// The CUDA implementation: logits of a chunk of tokens in memory, the rows of core/jsd-device.h and
// core/jsd-words-device.h over them, and the core's products with the weight and the hidden states.
namespace varlen::fused_linear_jsd {
namespace {

using cuda::Launch;

template <class S, class T>
DeviceHeads<S, T> HeadsOnGpu(const LinearHead& student, const LinearHead& teacher,
                             const JsdOptions& options) {
  DeviceHeads<S, T> heads{HeadOnGpu<S>(student, nullptr, options.shape()), {}, false};
  if (!teacher.hidden) return heads;
  heads.teacher = HeadOnGpu<T>(teacher, nullptr, options.shape());
  heads.has_teacher = true;
  return heads;
}

void Clear(Launch& launch, const Tensor& tensor) {
  if (tensor) launch.Fill(tensor.address(), 0, tensor.size() * SizeOf(tensor.dtype));
}

// U: dtype of stored log-probabilities.
template <class S, class T, class U>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const auto heads = HeadsOnGpu<S, T>(p.student, p.teacher.head, p.options);
  const auto memory = LogitMemory<S>::Forward(heads, LogitBudget{}, ScratchOf(launch));
  const int64_t num_tokens = heads.num_tokens();
  const MaskFilter filter{Launch::DataOf<uint8_t>(p.tokens.loss_mask), nullptr};
  const JsdOutputs& out = p.out;
  for (const Tensor* tensor : {&out.per_token, &out.student_lse, &out.teacher_lse, &out.inner,
                               &out.words, &out.slopes, &out.tail}) {
    Clear(launch, *tensor);
  }
  if (p.words.some) {
    using Rows = jsd::DeviceWordDivergence<float, U>;
    auto* problems = launch.Scratch<int32_t>(num_tokens);
    launch.Fill(problems, 0, num_tokens * static_cast<int64_t>(sizeof(int32_t)));
    typename Rows::Params params{{},
                                 out.words.shape[1],
                                 Launch::DataOf<int32_t>(p.words.ids),
                                 Launch::DataOf<U>(p.words.teacher_logprobs),
                                 p.words.by_teacher,
                                 p.words.tail_bucket,
                                 p.words.sampled,
                                 out.per_token.data<float>(),
                                 out.student_lse.data<double>(),
                                 out.words.data<int32_t>(),
                                 out.slopes.data<float>(),
                                 out.tail.data<float>(),
                                 problems};
    params.in.options = jsd::DeviceOptionsOf(p.options);
    ForwardPasses<Rows>(heads, filter, params, memory, RunsOn(launch));
    jsd::WeighOnGpu(launch, p.tokens, num_tokens, out);
    jsd::CheckWordsWhenDone(launch, problems, out.words, heads.vocab_size());
  } else {
    using Rows = jsd::DeviceDivergence<float, float>;
    Rows::Params params{{},
                        out.per_token.data<float>(),
                        out.student_lse.data<double>(),
                        out.teacher_lse.data<double>(),
                        out.inner.data<double>()};
    params.in.options = jsd::DeviceOptionsOf(p.options);
    ForwardPasses<Rows>(heads, filter, params, memory, RunsOn(launch));
    jsd::WeighOnGpu(launch, p.tokens, num_tokens, out);
  }
  return launch.status();
}

template <class S, class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const JsdUpstream& up = p.upstream;
  const auto heads = HeadsOnGpu<S, T>(p.student, p.teacher.head, p.options);
  const auto memory = LogitMemory<S>::Backward(heads, LogitBudget{}, ScratchOf(launch));
  const jsd::DeviceOptions options = jsd::DeviceOptionsOf(p.options);
  const auto* d_loss = Launch::DataOf<float>(up.d_loss);
  const auto* d_per_token = Launch::DataOf<float>(up.d_per_token);
  const auto* coefficients = up.coefficients.data<float>();
  const auto* student_lse = up.student_lse.data<double>();
  const RowBounds bounds{.mask = Launch::DataOf<uint8_t>(up.loss_mask),
                         .d_loss = d_loss,
                         .d_per_token = d_per_token,
                         .coefficients = coefficients,
                         .inner = Launch::DataOf<double>(up.inner),
                         .slopes = Launch::DataOf<float>(up.slopes),
                         .tail = Launch::DataOf<float>(up.tail),
                         .num_words = up.some_words() ? up.words.shape[1] : 0,
                         .loss_scale = options.loss_scale,
                         .log_vocab = std::log(static_cast<float>(heads.vocab_size()))};
  const DeviceLinearGradients<S> out = GradientsOnGpu<S>(p.gradients);
  if (up.some_words()) {
    jsd::DeviceWordGradients<float>::Params rows{};
    rows.num_words = up.words.shape[1];
    rows.activation = options.activation;
    rows.loss_scale = options.loss_scale;
    rows.d_loss = d_loss;
    rows.d_per_token = d_per_token;
    rows.coefficients = coefficients;
    rows.student_lse = student_lse;
    rows.words = up.words.data<int32_t>();
    rows.slopes = bounds.slopes;
    rows.tail = bounds.tail;
    BackwardPasses(heads, bounds, options, rows, out, memory, RunsOn(launch));
  } else {
    jsd::DeviceDivergenceGradients<float, float>::Params rows{};
    rows.d_loss = d_loss;
    rows.d_per_token = d_per_token;
    rows.coefficients = coefficients;
    rows.student_lse = student_lse;
    rows.teacher_lse = up.teacher_lse.data<double>();
    rows.inner = bounds.inner;
    BackwardPasses(heads, bounds, options, rows, out, memory, RunsOn(launch));
  }
  return launch.status();
}

template <class Fn>
Status DispatchFloats(const Tensor& tensor, const char* name, const Fn& fn) {
  return DispatchDType<float, bfloat16, half>(tensor.dtype, name, fn);
}

}  // namespace

Status RunCuda(const Forward& p) {
  return DispatchFloats(p.student.hidden, "hidden", [&]<class S>() {
    if (p.words.stored()) {
      return DispatchFloats(p.words.teacher_logprobs, "teacherLogprobs",
                            [&]<class U>() { return LaunchForward<S, S, U>(p); });
    }
    return DispatchFloats(p.teacher.head.hidden, "teacherHidden",
                          [&]<class T>() { return LaunchForward<S, T, float>(p); });
  });
}

Status RunCuda(const Backward& p) {
  return DispatchFloats(p.student.hidden, "hidden", [&]<class S>() {
    if (p.upstream.some_words()) return LaunchBackward<S, S>(p);
    return DispatchFloats(p.teacher.head.hidden, "teacherHidden",
                          [&]<class T>() { return LaunchBackward<S, T>(p); });
  });
}

}  // namespace varlen::fused_linear_jsd
