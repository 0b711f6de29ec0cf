// One pass over all tensors, cut into pieces of equal size whatever tensor they lie in.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/pieces.h"
#include "ops/adamw/adamw.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::adamw {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

// The factors of one step, the same for every element.
struct Factors {
  float beta1, rest1, beta2, rest2;
  float decay;  // 1 - lr wd
  float rate;   // what m / denominator is multiplied by
  float root;   // sqrt(v) is multiplied by it before eps is added
  float eps;
  bool decay_last;

  explicit Factors(const Forward& params)
      : beta1(static_cast<float>(params.beta1)),
        rest1(static_cast<float>(1 - params.beta1)),
        beta2(static_cast<float>(params.beta2)),
        rest2(static_cast<float>(1 - params.beta2)),
        decay(static_cast<float>(1 - params.lr * params.weight_decay)),
        eps(static_cast<float>(params.eps)),
        decay_last(params.eps_before_correction) {
    const double k = static_cast<double>(params.step);
    const double c1 = 1 - std::pow(params.beta1, k), c2 = 1 - std::pow(params.beta2, k);
    rate = static_cast<float>(decay_last ? params.lr * std::sqrt(c2) / c1 : params.lr / c1);
    root = static_cast<float>(decay_last ? 1 : 1 / std::sqrt(c2));
  }
};

// Elements [begin, end) of one tensor; `p` is the float32 parameter or the master.
template <class T>
void Update(const Factors& f, const float* g, float* p, float* m, float* v, T* rounded,
            int64_t begin, int64_t end) {
  const Floats d;
  const Vector decay = hn::Set(d, f.decay), rate = hn::Set(d, f.rate);
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t n = end - i;
    const Vector gradient = LoadUpTo(g + i, n);
    const Vector first =
        hn::MulAdd(gradient, hn::Set(d, f.rest1), hn::Mul(LoadUpTo(m + i, n), hn::Set(d, f.beta1)));
    const Vector second = hn::MulAdd(hn::Mul(gradient, gradient), hn::Set(d, f.rest2),
                                     hn::Mul(LoadUpTo(v + i, n), hn::Set(d, f.beta2)));
    const Vector denominator = hn::MulAdd(hn::Sqrt(second), hn::Set(d, f.root), hn::Set(d, f.eps));
    const Vector update = hn::Div(hn::Mul(first, rate), denominator);
    const Vector before = LoadUpTo(p + i, n);
    const Vector after = f.decay_last ? hn::Mul(hn::Sub(before, update), decay)
                                      : hn::Sub(hn::Mul(before, decay), update);
    StoreUpTo(first, m + i, n);
    StoreUpTo(second, v + i, n);
    StoreUpTo(after, p + i, n);
    if (rounded != nullptr) StoreUpTo(after, rounded + i, n);
  }
}

Status RunForward(const Forward& params) {
  if (params.gradient_norm && !std::isfinite(params.gradient_norm.data<float>()[0])) return {};
  const Factors factors(params);
  const Pieces pieces(params.gradients);
  return ParallelFor(pieces.count(), [&](int64_t piece, int) HWY_ATTR {
    const auto [n, begin, end] = pieces.At(piece);
    const float* g = params.gradients[n].template data<float>();
    float* m = params.exp_avg[n].template data<float>();
    float* v = params.exp_avg_sq[n].template data<float>();
    const Tensor& parameter = params.parameters[n];
    if (parameter.dtype == DType::kF32) {
      Update<float>(factors, g, parameter.data<float>(), m, v, nullptr, begin, end);
      return;
    }
    float* master = params.masters[n].template data<float>();
    if (parameter.dtype == DType::kBF16) {
      Update(factors, g, master, m, v, parameter.data<bfloat16>(), begin, end);
    } else {
      Update(factors, g, master, m, v, parameter.data<half>(), begin, end);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::adamw
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::adamw {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }

}  // namespace varlen::adamw
#endif
