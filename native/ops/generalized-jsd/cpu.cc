// The CPU implementation: over the whole vocabulary rows over the thread pool, each in segments of
// two distributions; over some words the core's rows, which find and gather logits.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/generalized-jsd/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/gemm-inl.h"
#include "core/jsd-inl.h"
//
#include "core/dense-logits.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/generalized-jsd/generalized-jsd.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::generalized_jsd {
namespace HWY_NAMESPACE {

using namespace varlen::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

// Words of a row at a time: 8 KiB of float32 logits for each side.
constexpr int64_t kSegment = 2048;

// Widened and activated words [first, first + count) of a row; whole vectors of `z` are written.
template <class T>
HWY_INLINE void ReadSegment(const Tensor& tensor, const Activation& activation, int64_t row,
                            int64_t first, int64_t count, float* z) {
  WidenRow(tensor.data<T>() + row * tensor.strides[0] + first, count, 1.0f, z,
           RoundUp(count, kLanes));
  ActivateSegment(activation, nullptr, count, z);
}

template <class Student, class Teacher>
void ForwardRow(const Forward& params, int64_t row) {
  HWY_ALIGN float z[kSegment], y[kSegment];
  const Activation activation(params.options.shape());
  const int64_t vocab = params.student.shape[1];
  RowSums student, teacher;
  for (int64_t first = 0; first < vocab; first += kSegment) {
    const int64_t count = std::min(kSegment, vocab - first);
    ReadSegment<Student>(params.student, activation, row, first, count, z);
    ReadSegment<Teacher>(params.teacher, activation, row, first, count, y);
    AddLogits(z, count, student);
    AddLogits(y, count, teacher);
  }
  const Divergence divergence(params.options, student.Lse(), teacher.Lse());
  double loss = 0, inner = 0;
  for (int64_t first = 0; first < vocab; first += kSegment) {
    const int64_t count = std::min(kSegment, vocab - first);
    ReadSegment<Student>(params.student, activation, row, first, count, z);
    ReadSegment<Teacher>(params.teacher, activation, row, first, count, y);
    AddDivergence(divergence, z, y, count, loss, inner);
  }
  const JsdOutputs& out = params.out;
  out.per_token.data<float>()[row] = static_cast<float>(params.options.loss_scale * loss);
  out.student_lse.data<double>()[row] = student.Lse();
  out.teacher_lse.data<double>()[row] = teacher.Lse();
  out.inner.data<double>()[row] = inner;
}

template <class Student, class Teacher>
void BackwardRow(const Backward& params, int64_t row) {
  HWY_ALIGN float z[kSegment], y[kSegment];
  const JsdUpstream& upstream = params.upstream;
  const Activation activation(params.options.shape());
  const Divergence divergence(params.options, upstream.student_lse.data<double>()[row],
                              upstream.teacher_lse.data<double>()[row]);
  const double inner = upstream.inner.data<double>()[row];
  const float factor = upstream.Factor(row, params.options);
  const int64_t vocab = params.student.shape[1];
  Student* to = params.d_student.data<Student>() + row * params.d_student.strides[0];
  for (int64_t first = 0; first < vocab; first += kSegment) {
    const int64_t count = std::min(kSegment, vocab - first);
    ReadSegment<Student>(params.student, activation, row, first, count, z);
    ReadSegment<Teacher>(params.teacher, activation, row, first, count, y);
    DifferentiateDivergence(divergence, activation, inner, factor, y, count, z);
    StoreRow(z, count, to + first);
  }
}

template <class Params, class Fn>
Status DispatchBoth(const Params& params, const Fn& fn) {
  return DispatchDType<float, bfloat16, half>(params.student.dtype, "student", [&]<class S>() {
    return DispatchDType<float, bfloat16, half>(
        params.teacher.dtype, "teacher", [&]<class T>() { return fn.template operator()<S, T>(); });
  });
}

Status RunForward(const Forward& params, const std::vector<int32_t>& rows) {
  return DispatchBoth(params, [&]<class S, class T>() {
    return ParallelFor(static_cast<int64_t>(rows.size()), [&](int64_t i, int) HWY_ATTR {
      if (!Cancelled()) ForwardRow<S, T>(params, rows[i]);
    });
  });
}

Status RunBackward(const Backward& params, const std::vector<int32_t>& rows) {
  return DispatchBoth(params, [&]<class S, class T>() {
    return ParallelFor(static_cast<int64_t>(rows.size()), [&](int64_t i, int) HWY_ATTR {
      if (!Cancelled()) BackwardRow<S, T>(params, rows[i]);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::generalized_jsd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::generalized_jsd {
namespace {

using Rows = std::vector<int32_t>;
constexpr IsaTable<Status(const Forward&, const Rows&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&, const Rows&)> kBackward = VARLEN_ISA_TABLE(RunBackward);

DenseLogits LogitsOf(const Tensor& logits, const JsdOptions& options, const Rows& rows) {
  return {logits.dtype,
          logits.address(),
          logits.strides[0],
          rows.data(),
          static_cast<int64_t>(rows.size()),
          logits.shape[1],
          options.shape()};
}
JsdSide SideOf(const Tensor& logits, const JsdOptions& options, const Rows& rows) {
  return [&](double* lse, const RowWords& words) {
    return ComputeRowStatistics(LogitsOf(logits, options, rows), nullptr,
                                {lse, nullptr, nullptr, nullptr, nullptr}, words);
  };
}

}  // namespace

Status RunCpu(const Forward& params) {
  const int64_t total_tokens = params.student.shape[0];
  const JsdOutputs& out = params.out;
  Status status =
      params.tokens.Weigh(total_tokens, out.coefficients.data<float>(), out.tokens.data<double>());
  if (!status.ok()) return status;
  out.Clear();
  const Rows rows = CountedRows(params.tokens.loss_mask, total_tokens);
  if (params.words.some) {
    status = DivergeOverWords(params.options, params.words, rows, params.student.shape[1],
                              SideOf(params.student, params.options, rows),
                              SideOf(params.teacher, params.options, rows), out);
  } else {
    status = kForward.Get()(params, rows);
  }
  if (status.ok()) out.WriteLoss();
  return status;
}

Status RunCpu(const Backward& params) {
  const Rows rows = CountedRows(params.upstream.loss_mask, params.student.shape[0]);
  Status status = ClearOtherRows(params.d_student, rows);
  if (!status.ok()) return status;
  if (!params.upstream.some_words()) return kBackward.Get()(params, rows);
  const JsdWordGradients gradients(params.options, params.upstream, rows);
  return ComputeLogitGradients(LogitsOf(params.student, params.options, rows),
                               gradients.gradients(), params.d_student.address(),
                               params.d_student.strides[0]);
}

}  // namespace varlen::generalized_jsd
#endif
