// A row is read twice: once for its sum of squares, once, from the cache, to be scaled.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms-norm/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/column_sums-inl.h"
//
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "ops/rms-norm/rms-norm.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::rms_norm {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kPieceElements = 16384;

template <class T>
Status Normalize(const Forward& params) {
  const int64_t hidden = params.weight.shape[0], rows = params.scale.size();
  const T* x = params.x.data<T>();
  const T* residual = params.residual ? params.residual.data<T>() : nullptr;
  const T* weight = params.weight.data<T>();
  T* out = params.out.data<T>();
  T* sum = residual != nullptr ? params.sum.data<T>() : nullptr;
  float* scale = params.scale.data<float>();
  const int64_t piece = std::max<int64_t>(1, kPieceElements / (hidden + 1));
  return ParallelForRange(rows, piece, [&](int64_t begin, int64_t end) HWY_ATTR {
    const Floats d;
    const Vector offset = hn::Set(d, params.weight_offset);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * hidden;
      const T* h = x + at;
      if (residual != nullptr) {
        for (int64_t c = 0; c < hidden; c += kLanes) {
          const int64_t n = hidden - c;
          StoreUpTo(hn::Add(LoadUpTo(x + at + c, n), LoadUpTo(residual + at + c, n)), sum + at + c,
                    n);
        }
        h = sum + at;
      }
      Vector squares = hn::Zero(d);
      for (int64_t c = 0; c < hidden; c += kLanes) {
        const Vector v = LoadUpTo(h + c, hidden - c);
        squares = hn::MulAdd(v, v, squares);
      }
      const float s = 1.0f / std::sqrt(SumOf(squares) / static_cast<float>(hidden) + params.eps);
      scale[r] = s;
      const Vector factor = hn::Set(d, s);
      for (int64_t c = 0; c < hidden; c += kLanes) {
        const int64_t n = hidden - c;
        const Vector w = hn::Add(LoadUpTo(weight + c, n), offset);
        StoreUpTo(hn::Mul(hn::Mul(LoadUpTo(h + c, n), factor), w), out + at + c, n);
      }
    }
  });
}

template <class T>
Status Differentiate(const Backward& params) {
  const int64_t hidden = params.weight.shape[0], rows = params.scale.size();
  const T* d_out = params.d_out.data<T>();
  const T* d_sum = params.d_sum ? params.d_sum.data<T>() : nullptr;
  const T* sum = params.sum.data<T>();
  const T* weight = params.weight.data<T>();
  const float* scale = params.scale.data<float>();
  T* dx = params.dx.data<T>();
  const auto add_rows = [&](int64_t begin, int64_t end, float* d_weight) HWY_ATTR {
    const Floats d;
    const Vector offset = hn::Set(d, params.weight_offset);
    for (int64_t r = begin; r < end; ++r) {
      const T* dy = d_out + r * hidden;
      const T* h = sum + r * hidden;
      const Vector s = hn::Set(d, scale[r]);
      Vector products = hn::Zero(d);
      for (int64_t c = 0; c < hidden; c += kLanes) {
        const int64_t n = hidden - c;
        const Vector v = LoadUpTo(h + c, n), g_out = LoadUpTo(dy + c, n);
        const Vector g = hn::Mul(g_out, hn::Add(LoadUpTo(weight + c, n), offset));
        products = hn::MulAdd(g, v, products);
        const Vector term = hn::Mul(hn::Mul(g_out, v), s);
        StoreUpTo(hn::Add(LoadUpTo(d_weight + c, n), term), d_weight + c, n);
      }
      const float mean = SumOf(products) / static_cast<float>(hidden);
      const Vector pull = hn::Set(d, scale[r] * scale[r] * mean);
      for (int64_t c = 0; c < hidden; c += kLanes) {
        const int64_t n = hidden - c;
        const Vector g = hn::Mul(LoadUpTo(dy + c, n), hn::Add(LoadUpTo(weight + c, n), offset));
        Vector gradient = hn::Mul(s, hn::NegMulAdd(LoadUpTo(h + c, n), pull, g));
        if (d_sum != nullptr) gradient = hn::Add(gradient, LoadUpTo(d_sum + r * hidden + c, n));
        StoreUpTo(gradient, dx + r * hidden + c, n);
      }
    }
  };
  return SumColumns(rows, hidden, params.d_weight.data<float>(), add_rows);
}

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.x.dtype, "x", [&]<class Scalar>() { return Normalize<Scalar>(params); });
}
Status RunBackward(const Backward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.d_out.dtype, "dOut", [&]<class Scalar>() { return Differentiate<Scalar>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::rms_norm
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::rms_norm {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::rms_norm
#endif
