// Each piece is summed on its own, in float64; the sums of the pieces are added in order.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/grad-clip/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/pieces.h"
#include "ops/grad-clip/grad-clip.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::grad_clip {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

// Squares of float32 numbers overflow float32 long before their sum overflows float64.
double SumOfSquares(const float* values, int64_t n) {
  const hn::ScalableTag<double> d;
  constexpr int64_t kWide = hn::MaxLanes(hn::ScalableTag<double>());
  const hn::Rebind<float, hn::ScalableTag<double>> df;
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    const auto a = hn::PromoteTo(d, hn::LoadU(df, values + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(df, values + i + kWide));
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < n; ++i) sum += double{values[i]} * values[i];
  return sum;
}

Status RunForward(const Forward& params) {
  const Pieces pieces(params.gradients);
  std::vector<double> squares(static_cast<size_t>(pieces.count()));
  Status status = ParallelFor(pieces.count(), [&](int64_t piece, int) HWY_ATTR {
    const auto [n, begin, end] = pieces.At(piece);
    squares[static_cast<size_t>(piece)] =
        SumOfSquares(params.gradients[n].template data<float>() + begin, end - begin);
  });
  if (!status.ok()) return status;
  double sum = 0;
  for (double part : squares) sum += part;
  const double norm = std::sqrt(sum);
  params.norm.data<float>()[0] = static_cast<float>(norm);
  const double factor = params.max_norm / (norm + 1e-6);
  if (!std::isfinite(norm) || !(factor < 1)) return {};
  return ParallelFor(pieces.count(), [&](int64_t piece, int) HWY_ATTR {
    const auto [n, begin, end] = pieces.At(piece);
    float* values = params.gradients[n].template data<float>();
    const Vector scale = hn::Set(Floats(), static_cast<float>(factor));
    for (int64_t i = begin; i < end; i += kLanes) {
      StoreUpTo(hn::Mul(LoadUpTo(values + i, end - i), scale), values + i, end - i);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::grad_clip
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::grad_clip {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }

}  // namespace varlen::grad_clip
#endif
