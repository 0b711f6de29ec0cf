#include "core/dispatch.h"
#include "core/jsd-cuda.h"
#include "ops/generalized-jsd/generalized-jsd.h"

// The CUDA implementation: core/jsd-device.h and core/jsd-words-device.h over rows of logits.
namespace varlen::generalized_jsd {
namespace {

using cuda::Launch;

template <class S, class T>
jsd::DeviceSides<S, T> SidesOf(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                               const JsdOptions& options) {
  return {.student = student.data<S>(),
          .teacher = Launch::DataOf<T>(teacher),
          .student_stride = student.strides[0],
          .teacher_stride = teacher ? teacher.strides[0] : 0,
          .mask = Launch::DataOf<uint8_t>(mask),
          .num_rows = student.shape[0],
          .vocab_size = student.shape[1],
          .options = jsd::DeviceOptionsOf(options),
          .vector_student = AlignedRows(student),
          .vector_teacher = teacher && AlignedRows(teacher)};
}

template <class S, class T>
Status LaunchForward(const Forward& p) {
  Launch& launch = Launch::Current();
  const auto in = SidesOf<S, T>(p.student, p.teacher, p.tokens.loss_mask, p.options);
  const JsdOutputs& out = p.out;
  auto* per_token = out.per_token.data<float>();
  auto* student_lse = out.student_lse.data<double>();
  if (p.words.some) {
    auto* problems = launch.Scratch<int32_t>(in.num_rows);
    launch.Run<jsd::DeviceWordDivergence<S, T>>(
        in.num_rows,
        {in, out.words.shape[1], Launch::DataOf<int32_t>(p.words.ids),
         Launch::DataOf<T>(p.words.teacher_logprobs), p.words.by_teacher, p.words.tail_bucket,
         p.words.sampled, per_token, student_lse, out.words.data<int32_t>(),
         out.slopes.data<float>(), out.tail.data<float>(), problems});
    jsd::WeighOnGpu(launch, p.tokens, in.num_rows, out);
    jsd::CheckWordsWhenDone(launch, problems, out.words, in.vocab_size);
  } else {
    launch.Run<jsd::DeviceDivergence<S, T>>(
        in.num_rows,
        {in, per_token, student_lse, out.teacher_lse.data<double>(), out.inner.data<double>()});
    jsd::WeighOnGpu(launch, p.tokens, in.num_rows, out);
  }
  return launch.status();
}

template <class S, class T>
Status LaunchBackward(const Backward& p) {
  Launch& launch = Launch::Current();
  const JsdUpstream& up = p.upstream;
  const auto in = SidesOf<S, T>(p.student, p.teacher, up.loss_mask, p.options);
  const auto* d_loss = Launch::DataOf<float>(up.d_loss);
  const auto* d_per_token = Launch::DataOf<float>(up.d_per_token);
  const auto* coefficients = up.coefficients.data<float>();
  const auto* student_lse = up.student_lse.data<double>();
  auto* to = p.d_student.data<S>();
  const int64_t stride = p.d_student.strides[0];
  const bool vectors = AlignedRows(p.d_student);
  if (up.some_words()) {
    launch.Run<jsd::DeviceWordGradients<S>>(
        in.num_rows,
        {in.student, in.student_stride, in.mask, in.num_rows, in.vocab_size, up.words.shape[1],
         in.options.activation, in.options.loss_scale, in.vector_student, d_loss, d_per_token,
         coefficients, student_lse, up.words.data<int32_t>(), up.slopes.data<float>(),
         up.tail.data<float>(), to, stride, vectors});
  } else {
    launch.Run<jsd::DeviceDivergenceGradients<S, T>>(
        in.num_rows, {in, d_loss, d_per_token, coefficients, student_lse,
                      up.teacher_lse.data<double>(), up.inner.data<double>(), to, stride, vectors});
  }
  return launch.status();
}

// fn<S, T>() for the dtypes of the student and of what the teacher is given by.
template <class Fn>
Status DispatchSides(const Tensor& student, const Tensor& teacher, const Fn& fn) {
  return DispatchDType<float, bfloat16, half>(student.dtype, "student", [&]<class S>() {
    if (!teacher) return fn.template operator()<S, S>();
    return DispatchDType<float, bfloat16, half>(
        teacher.dtype, "teacher", [&]<class T>() { return fn.template operator()<S, T>(); });
  });
}

}  // namespace

Status RunCuda(const Forward& p) {
  return DispatchSides(p.student, p.words.stored() ? p.words.teacher_logprobs : p.teacher,
                       [&]<class S, class T>() { return LaunchForward<S, T>(p); });
}

Status RunCuda(const Backward& p) {
  return DispatchSides(p.student, p.teacher,
                       [&]<class S, class T>() { return LaunchBackward<S, T>(p); });
}

}  // namespace varlen::generalized_jsd
