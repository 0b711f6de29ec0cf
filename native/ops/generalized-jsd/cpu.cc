// The CPU implementation: rows over the thread pool, each in segments of two distributions.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/generalized-jsd/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementary-inl.h"
#include "core/gemm-inl.h"
#include "core/row-softmax-inl.h"
//
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

// ln q and ln p of a vector of words, the mixture's, and the probabilities.
struct Words {
  Vector log_q, log_p, q, p;
};

class Divergence {
 public:
  Divergence(const Options& options, double student_lse, double teacher_lse)
      : student_(student_lse),
        teacher_(teacher_lse),
        beta_(options.beta),
        floor_(options.teacher_floor < 0 ? options.teacher_floor : -kInfinity) {}

  HWY_INLINE Words Read(Vector student, Vector teacher) const {
    const Vector log_q = student_(student);
    const Vector log_p = hn::Max(teacher_(teacher), hn::Set(Floats(), floor_));
    return {log_q, log_p, Exp(log_q), Exp(log_p)};
  }
  // What the words add to L, and q h.
  HWY_INLINE void Add(const Words& w, Vector& loss, Vector& inner) const {
    const Floats d;
    if (beta_ == 0) {
      loss = hn::Add(loss, MulOrZero(hn::Sub(w.log_p, w.log_q), w.p));
      return;
    }
    const Vector qh = MulOrZero(Slope(w), w.q);
    inner = hn::Add(inner, qh);
    loss = hn::Add(loss, qh);
    if (beta_ == 1) return;
    const Vector log_ratio = hn::Sub(w.log_p, LogMixture(w));
    loss = hn::MulAdd(hn::Set(d, beta_), MulOrZero(log_ratio, w.p), loss);
  }
  // dz.
  HWY_INLINE Vector Gradient(const Words& w, Vector inner) const {
    if (beta_ == 0) return hn::Sub(w.q, w.p);
    return MulOrZero(hn::Sub(Slope(w), inner), w.q);
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  // ln((1 - beta) q + beta p), from the larger of the two terms.
  HWY_INLINE Vector LogMixture(const Words& w) const {
    const Floats d;
    const Vector a = hn::Add(w.log_q, hn::Set(d, std::log1p(-beta_)));
    const Vector b = hn::Add(w.log_p, hn::Set(d, std::log(beta_)));
    const Vector high = hn::Max(a, b), low = hn::Min(a, b);
    const Vector gap = hn::IfThenElse(hn::Eq(low, hn::Set(d, -kInfinity)), low, hn::Sub(low, high));
    return hn::Add(high, Log(hn::Add(hn::Set(d, 1.0f), Exp(gap))));
  }
  // h.
  HWY_INLINE Vector Slope(const Words& w) const {
    if (beta_ == 1) return hn::Sub(w.log_q, w.log_p);
    return hn::Mul(hn::Set(Floats(), 1 - beta_), hn::Sub(w.log_q, LogMixture(w)));
  }

  LogProbabilities student_, teacher_;
  float beta_, floor_;
};

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
  const Floats d;
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
    const int64_t whole = count / kLanes * kLanes;
    Vector losses = hn::Zero(d), inners = hn::Zero(d);
    for (int64_t i = 0; i < whole; i += kLanes) {
      divergence.Add(divergence.Read(hn::LoadU(d, z + i), hn::LoadU(d, y + i)), losses, inners);
    }
    if (whole < count) {
      Vector last_loss = hn::Zero(d), last_inner = hn::Zero(d);
      divergence.Add(divergence.Read(hn::LoadU(d, z + whole), hn::LoadU(d, y + whole)), last_loss,
                     last_inner);
      const auto tail = hn::FirstN(d, static_cast<size_t>(count - whole));
      losses = hn::Add(losses, hn::IfThenElseZero(tail, last_loss));
      inners = hn::Add(inners, hn::IfThenElseZero(tail, last_inner));
    }
    loss += hn::GetLane(hn::SumOfLanes(d, losses));
    inner += hn::GetLane(hn::SumOfLanes(d, inners));
  }
  params.per_token.data<float>()[row] = static_cast<float>(params.options.loss_scale * loss);
  params.student_lse.data<double>()[row] = student.Lse();
  params.teacher_lse.data<double>()[row] = teacher.Lse();
  params.inner.data<double>()[row] = inner;
}

template <class Student, class Teacher>
void BackwardRow(const Backward& params, float factor, int64_t row) {
  const Floats d;
  HWY_ALIGN float z[kSegment], y[kSegment];
  const Activation activation(params.options.shape());
  const Divergence divergence(params.options, params.student_lse.data<double>()[row],
                              params.teacher_lse.data<double>()[row]);
  const Vector inner = hn::Set(d, static_cast<float>(params.inner.data<double>()[row]));
  const Vector factors = hn::Set(d, factor * params.options.loss_scale);
  const int64_t vocab = params.student.shape[1];
  Student* to = params.d_student.data<Student>() + row * params.d_student.strides[0];
  for (int64_t first = 0; first < vocab; first += kSegment) {
    const int64_t count = std::min(kSegment, vocab - first);
    ReadSegment<Student>(params.student, activation, row, first, count, z);
    ReadSegment<Teacher>(params.teacher, activation, row, first, count, y);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vector logit = hn::LoadU(d, z + i);
      const Words words = divergence.Read(logit, hn::LoadU(d, y + i));
      const Vector dz = hn::Mul(factors, divergence.Gradient(words, inner));
      const Vector du = activation.Backward(dz, logit);
      if (i + kLanes <= count) {
        StoreFromFloat(du, to + first + i);
      } else {
        StoreFirst(du, to + first + i, count - i);
      }
    }
  }
}

template <class Params, class Fn>
Status DispatchBoth(const Params& params, const Fn& fn) {
  return DispatchDType<float, bfloat16, half>(params.student.dtype, "student", [&]<class S>() {
    return DispatchDType<float, bfloat16, half>(
        params.teacher.dtype, "teacher", [&]<class T>() { return fn.template operator()<S, T>(); });
  });
}

Status RunForward(const Forward& params) {
  const uint8_t* mask = params.loss_mask ? params.loss_mask.data<uint8_t>() : nullptr;
  return DispatchBoth(params, [&]<class S, class T>() {
    return ParallelFor(params.student.shape[0], [&](int64_t row, int) HWY_ATTR {
      if (Cancelled()) return;
      if (mask == nullptr || mask[row] != 0) return ForwardRow<S, T>(params, row);
      params.per_token.data<float>()[row] = 0;
      params.student_lse.data<double>()[row] = params.teacher_lse.data<double>()[row] = 0;
      params.inner.data<double>()[row] = 0;
    });
  });
}

Status RunBackward(const Backward& params) {
  const uint8_t* mask = params.loss_mask ? params.loss_mask.data<uint8_t>() : nullptr;
  const float d_loss = params.d_loss ? *params.d_loss.data<float>() : 0.0f;
  return DispatchBoth(params, [&]<class S, class T>() {
    return ParallelFor(params.student.shape[0], [&](int64_t row, int) HWY_ATTR {
      if (Cancelled()) return;
      if (mask != nullptr && mask[row] == 0) {
        std::fill_n(params.d_student.data<S>() + row * params.d_student.strides[0],
                    params.d_student.shape[1], S(0.0f));
        return;
      }
      float factor = d_loss * params.coefficients.data<float>()[row];
      if (params.d_per_token) factor += params.d_per_token.data<float>()[row];
      BackwardRow<S, T>(params, factor, row);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::generalized_jsd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::generalized_jsd {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) {
  float* coefficients = params.coefficients.data<float>();
  Status status = WeighTokens(params, coefficients, params.tokens.data<double>());
  if (status.ok()) status = kForward.Get()(params);
  if (!status.ok()) return status;
  double loss = 0;
  for (int64_t t = 0; t < params.student.shape[0]; ++t) {
    // A token of weight 0 adds nothing, though its divergence be infinite.
    if (coefficients[t] != 0) loss += double{coefficients[t]} * params.per_token.data<float>()[t];
  }
  *params.loss.data<float>() = static_cast<float>(loss);
  return {};
}
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::generalized_jsd
#endif
