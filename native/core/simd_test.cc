// Every vector function of simd-inl.h and gemm-inl.h, on every instruction set that this machine
// runs, against scalar code.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd_test.cc"
#include "hwy/foreach_target.h"
//
#include "core/gemm-inl.h"
#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// y[i] = f(x[i]) for n, a multiple of 16, floats.
void Exp2Degree5(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(Exp2<5>(LoadAsFloat(x + i)), y + i);
}
void Exp2Degree6(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(Exp2<6>(LoadAsFloat(x + i)), y + i);
}
void TanhOf(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(Tanh(LoadAsFloat(x + i)), y + i);
}
void WidenBFloat16(const bfloat16* x, float* y, int64_t n) { WidenRow(x, n, 1.0f, y, n); }
void WidenHalf(const half* x, float* y, int64_t n) { WidenRow(x, n, 1.0f, y, n); }
void NarrowBFloat16(const float* x, bfloat16* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(LoadAsFloat(x + i), y + i);
}
void NarrowHalf(const float* x, half* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) StoreFromFloat(LoadAsFloat(x + i), y + i);
}
// The first n < kLanes elements pass through; returns kLanes.
int64_t CopyFirst(const float* x, float* y, int64_t n) {
  StoreFirst(LoadFirst(x, n), y, n);
  return kLanes;
}
// rows [kPanel][stride] to panel [depth][kPanel]; returns kPanel.
int64_t Transpose(const float* rows, int64_t stride, int64_t depth, float* panel) {
  if (rows != nullptr) TransposeToPanel(rows, stride, depth, kPanel, panel);
  return kPanel;
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

constexpr IsaTable<void(const float*, float*, int64_t)> kExp2Degree5 =
    VARLEN_ISA_TABLE(Exp2Degree5);
constexpr IsaTable<void(const float*, float*, int64_t)> kExp2Degree6 =
    VARLEN_ISA_TABLE(Exp2Degree6);
constexpr IsaTable<void(const float*, float*, int64_t)> kTanh = VARLEN_ISA_TABLE(TanhOf);
constexpr IsaTable<void(const bfloat16*, float*, int64_t)> kWidenBFloat16 =
    VARLEN_ISA_TABLE(WidenBFloat16);
constexpr IsaTable<void(const half*, float*, int64_t)> kWidenHalf = VARLEN_ISA_TABLE(WidenHalf);
constexpr IsaTable<void(const float*, bfloat16*, int64_t)> kNarrowBFloat16 =
    VARLEN_ISA_TABLE(NarrowBFloat16);
constexpr IsaTable<void(const float*, half*, int64_t)> kNarrowHalf = VARLEN_ISA_TABLE(NarrowHalf);
constexpr IsaTable<int64_t(const float*, float*, int64_t)> kCopyFirst = VARLEN_ISA_TABLE(CopyFirst);
constexpr IsaTable<int64_t(const float*, int64_t, int64_t, float*)> kTranspose =
    VARLEN_ISA_TABLE(Transpose);

template <class Check>
void OnEveryIsa(const Check& check) {
  const Isa before = ActiveIsa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    if (!UseIsa(isa)) continue;
    CAPTURE(NameOf(isa));
    check();
  }
  REQUIRE(UseIsa(before));
}

std::vector<float> Apply(const IsaTable<void(const float*, float*, int64_t)>& function,
                         std::vector<float> x) {
  const size_t n = x.size();
  x.resize((n + 15) / 16 * 16);
  std::vector<float> y(x.size());
  function.Get()(x.data(), y.data(), static_cast<int64_t>(x.size()));
  y.resize(n);
  return y;
}

std::vector<float> Grid(float from, float to, int n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    x[static_cast<size_t>(i)] =
        from + (to - from) * static_cast<float>(i) / static_cast<float>(n - 1);
  }
  return x;
}

double WorstRelativeError(const std::vector<float>& x, const std::vector<float>& y,
                          double (*exact)(double)) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(x[i]);
    const double error =
        want == 0 ? std::abs(double{y[i]}) : std::abs(y[i] - want) / std::abs(want);
    worst = std::max(worst, error);
  }
  return worst;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("exp2 keeps its error bound over the whole range") {
  // Minimax error plus two roundings of the last multiply-add; without fused arithmetic one more.
  OnEveryIsa([] {
    const std::vector<float> x = Grid(-125.9f, 127.9f, 400003);
    CHECK(WorstRelativeError(x, Apply(kExp2Degree5, x), std::exp2) < 3.0e-7);
    CHECK(WorstRelativeError(x, Apply(kExp2Degree6, x), std::exp2) < 1.8e-7);
  });
}

TEST_CASE("exp2 is exact where it must be") {
  OnEveryIsa([] {
    for (const auto* exp2 : {&kExp2Degree5, &kExp2Degree6}) {
      const std::vector<float> y =
          Apply(*exp2, {-kInfinity, -1e30f, -126.5f, kInfinity, 200.0f, kNaN, 0.0f});
      CHECK(y[0] == 0);
      CHECK(y[1] == 0);
      CHECK(y[2] == 0);
      CHECK(y[3] == kInfinity);
      CHECK(y[4] == kInfinity);
      CHECK(std::isnan(y[5]));
      CHECK(std::abs(y[6] - 1) <= 1.2e-7f);
    }
    CHECK(Apply(kExp2Degree6, {0.0f, 1.0f, -126.0f})[0] == 1.0f);
  });
}

TEST_CASE("tanh keeps its relative error, its sign and its limits") {
  OnEveryIsa([] {
    const std::vector<float> x = Grid(-12, 12, 200002);  // an even count: 0 is not among them
    CHECK(WorstRelativeError(x, Apply(kTanh, x), std::tanh) < 3e-7);
    const std::vector<float> y =
        Apply(kTanh, {0.0f, 50.0f, -50.0f, kInfinity, -kInfinity, 1e-20f, kNaN});
    CHECK(y[0] == 0);
    CHECK(y[1] == 1);
    CHECK(y[2] == -1);
    CHECK(y[3] == 1);
    CHECK(y[4] == -1);
    CHECK(y[5] == 1e-20f);
    CHECK(std::isnan(y[6]));
  });
}

template <class T>
std::vector<T> AllPatterns() {
  std::vector<T> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<uint16_t>(i);
  return all;
}

TEST_CASE("Every 16-bit pattern widens as the scalar conversion does") {
  OnEveryIsa([] {
    std::vector<float> wide(65536);
    const auto check = [&](const auto& patterns) {
      size_t wrong = 0;
      for (size_t i = 0; i < wide.size(); ++i) {
        const float want = static_cast<float>(patterns[i]);
        const bool same = std::isnan(want) ? std::isnan(wide[i]) : wide[i] == want;
        wrong += same && std::signbit(want) == std::signbit(wide[i]) ? 0 : 1;
      }
      CHECK(wrong == 0);
    };
    const auto bfloat16s = AllPatterns<bfloat16>();
    kWidenBFloat16.Get()(bfloat16s.data(), wide.data(), 65536);
    check(bfloat16s);
    const auto halves = AllPatterns<half>();
    kWidenHalf.Get()(halves.data(), wide.data(), 65536);
    check(halves);
  });
}

TEST_CASE(
    "Narrowing rounds to nearest even, as the scalar conversion does, for ties and extremes") {
  // Around every half: itself, the midpoint to the next and that midpoint's two neighbours.
  std::vector<float> x;
  for (const half h : AllPatterns<half>()) {
    const float value = static_cast<float>(h);
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    for (uint32_t step : {0u, 0xfffu, 0x1000u, 0x1001u, 0x8000u, 0x18000u}) {
      x.push_back(std::bit_cast<float>(bits + step));
    }
  }
  for (float value :
       {65519.0f, 65520.0f, 1e30f, -1e30f, 3.4e38f, 1e-30f, 2.9e-8f, 3.0e-8f, 0x1p-25f}) {
    x.push_back(value);
  }
  x.resize((x.size() + 15) / 16 * 16);
  const auto n = static_cast<int64_t>(x.size());
  OnEveryIsa([&] {
    const auto check = [&](const auto& narrow, auto scalar) {
      size_t wrong = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const auto want = scalar(x[i]);
        const bool same = std::isnan(x[i]) ? std::isnan(static_cast<float>(narrow[i]))
                                           : narrow[i].bits == want.bits;
        wrong += same ? 0 : 1;
      }
      CHECK(wrong == 0);
    };
    std::vector<bfloat16> bfloat16s(x.size());
    kNarrowBFloat16.Get()(x.data(), bfloat16s.data(), n);
    check(bfloat16s, [](float v) { return bfloat16(v); });
    std::vector<half> halves(x.size());
    kNarrowHalf.Get()(x.data(), halves.data(), n);
    check(halves, [](float v) { return half(v); });
  });
}

TEST_CASE("Partial loads and stores touch nothing past their end") {
  OnEveryIsa([] {
    for (int64_t n = 1; n < 16; ++n) {
      // Exactly n elements on the heap: the address sanitizer watches both ends.
      std::vector<float> x(static_cast<size_t>(n), 2.0f), y(static_cast<size_t>(n), -1.0f);
      if (n >= kCopyFirst.Get()(x.data(), y.data(), 1)) break;
      kCopyFirst.Get()(x.data(), y.data(), n);
      CHECK(x == y);
    }
  });
}

TEST_CASE("A panel is the transpose of its rows") {
  OnEveryIsa([] {
    const int64_t columns = kTranspose.Get()(nullptr, 0, 0, nullptr), depth = 20, stride = 23;
    std::vector<float> rows(static_cast<size_t>(columns * stride));
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
    std::vector<float> panel(static_cast<size_t>(depth * columns));
    kTranspose.Get()(rows.data(), stride, depth, panel.data());
    int64_t wrong = 0;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t c = 0; c < columns; ++c) {
        wrong +=
            panel[static_cast<size_t>(k * columns + c)] == rows[static_cast<size_t>(c * stride + k)]
                ? 0
                : 1;
      }
    }
    CHECK(wrong == 0);
  });
}

}  // namespace
}  // namespace varlen
#endif
