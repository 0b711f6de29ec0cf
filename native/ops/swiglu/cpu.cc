#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/swiglu/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/swiglu/swiglu.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::swiglu {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kPieceElements = 16384;

template <class T>
Status Gate(const Forward& params) {
  const T *gate = params.gate.data<T>(), *up = params.up.data<T>();
  T* out = params.out.data<T>();
  return ParallelForRange(
      params.gate.size(), kPieceElements, [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t i = begin; i < end; i += kLanes) {
          const Vector g = LoadUpTo(gate + i, end - i);
          const Vector y = hn::Mul(hn::Mul(g, Sigmoid(g)), LoadUpTo(up + i, end - i));
          StoreUpTo(y, out + i, end - i);
        }
      });
}

template <class T>
Status Differentiate(const Backward& params) {
  const T *gate = params.gate.data<T>(), *up = params.up.data<T>();
  const T* d_out = params.d_out.data<T>();
  T *d_gate = params.d_gate.data<T>(), *d_up = params.d_up.data<T>();
  return ParallelForRange(
      params.gate.size(), kPieceElements, [&](int64_t begin, int64_t end) HWY_ATTR {
        const Floats d;
        const Vector one = hn::Set(d, 1.0f);
        for (int64_t i = begin; i < end; i += kLanes) {
          const int64_t n = end - i;
          const Vector g = LoadUpTo(gate + i, n), dy = LoadUpTo(d_out + i, n);
          const Vector s = Sigmoid(g);
          const Vector slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
          StoreUpTo(hn::Mul(dy, hn::Mul(g, s)), d_up + i, n);
          StoreUpTo(hn::Mul(hn::Mul(dy, LoadUpTo(up + i, n)), slope), d_gate + i, n);
        }
      });
}

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(params.gate.dtype, "gate",
                                              [&]<class Scalar>() { return Gate<Scalar>(params); });
}
Status RunBackward(const Backward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.gate.dtype, "gate", [&]<class Scalar>() { return Differentiate<Scalar>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::swiglu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::swiglu {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::swiglu
#endif
