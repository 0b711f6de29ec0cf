#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/add/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/add/add.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::add {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kPieceElements = 65536;

template <class T>
Status Sum(const Forward& params) {
  const T *a = params.a.data<T>(), *b = params.b.data<T>();
  T* out = params.out.data<T>();
  return ParallelForRange(
      params.a.size(), kPieceElements, [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t i = begin; i < end; i += kLanes) {
          StoreUpTo(hn::Add(LoadUpTo(a + i, end - i), LoadUpTo(b + i, end - i)), out + i, end - i);
        }
      });
}

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(params.a.dtype, "a",
                                              [&]<class Scalar>() { return Sum<Scalar>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::add
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::add {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }

}  // namespace varlen::add
#endif
