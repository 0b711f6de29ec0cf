// exp and log of elementary-inl.h against double, on every instruction set that this machine runs.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/elementary_test.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// exp, exp - 1, exp - 1 - x of n, a multiple of 16, floats, one array after the other.
void ExpOf(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const ExpTerms terms = ExpAll(LoadAsFloat(x + i));
    StoreFromFloat(terms.exp, y + i);
    StoreFromFloat(terms.minus, y + n + i);
    StoreFromFloat(terms.rest, y + 2 * n + i);
  }
}
void LogOf(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(Log(LoadAsFloat(x + i)), y + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>
#include <limits>
#include <vector>

#include "doctest/doctest.h"

namespace varlen {
namespace {

constexpr IsaTable<void(const float*, float*, int64_t)> kExp = VARLEN_ISA_TABLE(ExpOf);
constexpr IsaTable<void(const float*, float*, int64_t)> kLog = VARLEN_ISA_TABLE(LogOf);

template <class Check>
void OnEveryIsa(const Check& check) {
  const Isa before = ActiveIsa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    if (!UseIsa(isa)) continue;
    CAPTURE(NameOf(isa));
    check();
  }
  UseIsa(before);
}

// Distance in units of the last place of `want`.
double Ulps(float got, double want) {
  const float near = std::abs(static_cast<float>(want));
  return std::abs(got - want) / (std::nextafter(near, HUGE_VALF) - near);
}

TEST_CASE("exp is within 2 ulp of the true value, and 0 and infinity beyond its range") {
  OnEveryIsa([] {
    std::vector<float> x;
    for (int i = 0; i < 1 << 20; ++i) x.push_back(-87.3f + static_cast<float>(i) * 1.672e-4f);
    const auto n = static_cast<int64_t>(x.size());
    std::vector<float> y(3 * x.size());
    kExp.Get()(x.data(), y.data(), n);
    double worst = 0, worst_rest = 0, worst_minus = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double exact = std::exp(double{x[i]}), minus = std::expm1(double{x[i]});
      worst = std::max(worst, Ulps(y[i], exact));
      worst_minus = std::max(worst_minus, std::abs(y[n + i] - minus) / std::abs(minus));
      // Near 0 the double difference has lost its digits too: its series.
      const double v = x[i];
      const double rest =
          std::abs(v) < 1e-2 ? v * v / 2 + v * v * v / 6 + v * v * v * v / 24 : minus - v;
      if (v != 0) worst_rest = std::max(worst_rest, std::abs(y[2 * n + i] - rest) / rest);
    }
    CHECK(worst <= 2);
    CHECK(worst_minus <= 4e-7);
    CHECK(worst_rest <= 2e-6);
    const std::vector<float> far = {-88, -100, -1e30f, 89, 100, 1e30f, 0, 0,
                                    0,   0,    0,      0,  0,   0,     0, 0};
    kExp.Get()(far.data(), y.data(), 16);
    for (int i = 0; i < 3; ++i) CHECK(y[i] == 0);
    for (int i = 3; i < 6; ++i) CHECK(std::isinf(y[i]));
    CHECK(y[6] == 1);
  });
}

TEST_CASE("log is within 2 ulp of the true value, and -infinity at 0") {
  OnEveryIsa([] {
    std::vector<float> x;
    for (int i = 0; i < 1 << 20; ++i) {
      x.push_back(i % 2 == 0 ? 0.5f + static_cast<float>(i) * 1.5e-6f
                             : std::exp2(-126.0f + static_cast<float>(i) * 2.4e-4f));
    }
    std::vector<float> y(x.size());
    kLog.Get()(x.data(), y.data(), static_cast<int64_t>(x.size()));
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] != 1) worst = std::max(worst, Ulps(y[i], std::log(double{x[i]})));
    }
    CHECK(worst <= 2);
    const std::vector<float> zero(16, 0.0f);
    kLog.Get()(zero.data(), y.data(), 16);
    CHECK(y[0] == -std::numeric_limits<float>::infinity());
  });
}

}  // namespace
}  // namespace varlen
#endif
