#include "core/gemm.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "doctest/doctest.h"

namespace varlen {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

float Get(const Tensor& t, int64_t i) {
  if (t.dtype == DType::kBF16) return static_cast<float>(t.data<bfloat16>()[i]);
  if (t.dtype == DType::kF16) return static_cast<float>(t.data<half>()[i]);
  return t.data<float>()[i];
}
void Set(const Tensor& t, int64_t i, float value) {
  if (t.dtype == DType::kBF16) {
    t.data<bfloat16>()[i] = bfloat16(value);
  } else if (t.dtype == DType::kF16) {
    t.data<half>()[i] = half(value);
  } else {
    t.data<float>()[i] = value;
  }
}

// A matrix whose rows are followed by `pad` NaNs that nobody may read into a result or overwrite.
struct Matrix {
  Tensor data;
  int64_t rows, columns;

  Matrix(DType dtype, int64_t rows, int64_t columns, int64_t pad, std::mt19937& random)
      : data(Tensor::Empty(dtype, {rows, columns + pad})), rows(rows), columns(columns) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns + pad; ++c) {
        Set(data, r * stride() + c, c < columns ? uniform(random) : kNaN);
      }
    }
  }
  int64_t stride() const { return data.shape[1]; }
  double At(int64_t r, int64_t c) const { return Get(data, r * stride() + c); }
  GemmInput Input(bool transposed) const {
    return {data.data<char>(), data.dtype, stride(), transposed};
  }
};

struct Problem {
  int64_t m, n, k;
  DType a = DType::kF32, b = DType::kF32, c = DType::kF32;
  bool a_transposed = false, b_transposed = false;
  float alpha = 1;
  bool accumulate = false;
  int64_t pad = 3;
};

struct Operands {
  Matrix a, b, c;
  Operands(const Problem& p, std::mt19937& random)
      : a(p.a, p.a_transposed ? p.k : p.m, p.a_transposed ? p.m : p.k, p.pad, random),
        b(p.b, p.b_transposed ? p.n : p.k, p.b_transposed ? p.k : p.n, p.pad, random),
        c(p.c, p.m, p.n, p.pad, random) {}
  Gemm Of(const Problem& p) const {
    return {p.m,
            p.n,
            p.k,
            a.Input(p.a_transposed),
            b.Input(p.b_transposed),
            {c.data.data<char>(), p.c, c.stride()},
            p.alpha,
            p.accumulate};
  }
};

// Against the sum in double: float32 sums of k products of numbers below 1, then C's own rounding.
void CheckProduct(const Problem& p) {
  std::mt19937 random(7);
  const Operands x(p, random);
  std::vector<double> want(static_cast<size_t>(p.m * p.n));
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += (p.a_transposed ? x.a.At(k, i) : x.a.At(i, k)) *
               (p.b_transposed ? x.b.At(j, k) : x.b.At(k, j));
      }
      want[static_cast<size_t>(i * p.n + j)] = p.alpha * sum + (p.accumulate ? x.c.At(i, j) : 0.0);
    }
  }
  REQUIRE(Multiply(x.Of(p)).ok());
  const double unit = p.c == DType::kBF16 ? 0x1p-8 : p.c == DType::kF16 ? 0x1p-11 : 0x1p-24;
  int64_t wrong = 0, overwritten = 0;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      const double value = want[static_cast<size_t>(i * p.n + j)];
      const double allowed = std::abs(p.alpha) * 0x1p-24 * 4 *
                                 std::sqrt(static_cast<double>(p.k) + 1) *
                                 (std::sqrt(static_cast<double>(p.k)) + 1) +
                             unit * std::abs(value);
      wrong += std::abs(x.c.At(i, j) - value) <= allowed ? 0 : 1;
    }
    for (int64_t j = p.n; j < x.c.stride(); ++j) overwritten += std::isnan(x.c.At(i, j)) ? 0 : 1;
  }
  INFO("m " << p.m << " n " << p.n << " k " << p.k << " types " << NameOf(p.a) << " " << NameOf(p.b)
            << " " << NameOf(p.c) << " transposed " << p.a_transposed << p.b_transposed << " on "
            << NameOf(ActiveIsa()));
  CHECK(wrong == 0);
  CHECK(overwritten == 0);
}

template <class Check>
void OnEveryIsa(const Check& check) {
  const Isa before = ActiveIsa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    if (UseIsa(isa)) check();
  }
  REQUIRE(UseIsa(before));
}

TEST_CASE("A product agrees with double arithmetic at every ragged edge of a tile and a panel") {
  OnEveryIsa([] {
    for (int64_t m : {1, 5, 6, 13, 14, 15, 29, 113}) {
      for (int64_t n : {1, 7, 8, 16, 17, 31, 32, 33, 65}) CheckProduct({m, n, 37});
    }
  });
}

TEST_CASE("A product agrees with double arithmetic across passes over its depth") {
  OnEveryIsa([] {
    for (int64_t k : {1, 2, 3, 4, 63, 64, 65, 511, 512, 513, 1027}) {
      for (bool a : {false, true}) {
        for (bool b : {false, true}) CheckProduct({17, 35, k, {}, {}, {}, a, b, 0.5f, true});
      }
    }
  });
}

TEST_CASE("Every mix of operand types, transposes and accumulation agrees with double arithmetic") {
  constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  OnEveryIsa([&] {
    for (DType a : kTypes) {
      for (DType b : kTypes) {
        for (DType c : kTypes) {
          for (int bits = 0; bits < 8; ++bits) {
            CheckProduct(
                {21, 43, 70, a, b, c, (bits & 1) != 0, (bits & 2) != 0, -1.25f, (bits & 4) != 0});
          }
        }
      }
    }
  });
}

TEST_CASE("Rows a multiple of 1 KiB apart, which are packed, and others, which are not, agree") {
  CheckProduct({30, 40, 256, {}, {}, {}, false, false, 1, false, 0});
  CheckProduct({30, 40, 1024, {}, {}, {}, false, true, 1, false, 0});
}

TEST_CASE("An empty product is zero, or leaves what it is added to") {
  CheckProduct({3, 4, 0});
  CheckProduct({3, 4, 0, {}, {}, {}, false, false, 1, true});
  CheckProduct({0, 4, 5});
  CheckProduct({3, 0, 5});
}

TEST_CASE("The bits do not depend on the number of threads") {
  const Problem p{150, 200, 600, DType::kBF16, DType::kF32, DType::kF32, false, true};
  std::mt19937 random(3);
  const Operands x(p, random);
  const int before = NumThreads();
  std::vector<float> first;
  for (int threads : {1, 2, 3, 16}) {
    SetNumThreads(threads);
    REQUIRE(Multiply(x.Of(p)).ok());
    std::vector<float> bits(static_cast<size_t>(p.m * p.n));
    for (int64_t i = 0; i < p.m; ++i) {
      std::memcpy(&bits[static_cast<size_t>(i * p.n)], x.c.data.data<float>() + i * x.c.stride(),
                  static_cast<size_t>(p.n) * sizeof(float));
    }
    if (first.empty()) first = bits;
    CHECK(std::memcmp(first.data(), bits.data(), bits.size() * sizeof(float)) == 0);
  }
  SetNumThreads(before);
}

TEST_CASE("A row has the same bits alone and among others") {
  OnEveryIsa([] {
    const Problem whole{40, 70, 530};
    std::mt19937 random(5);
    const Operands x(whole, random);
    REQUIRE(Multiply(x.Of(whole)).ok());
    for (int64_t row : {0, 13, 14, 39}) {
      const Tensor alone = Tensor::Empty(DType::kF32, {whole.n});
      Gemm gemm = x.Of(whole);
      gemm.m = 1;
      gemm.a.data = x.a.data.data<float>() + row * x.a.stride();
      gemm.c = {alone.data<float>(), DType::kF32, whole.n};
      REQUIRE(Multiply(gemm).ok());
      CHECK(std::memcmp(alone.data<float>(), x.c.data.data<float>() + row * x.c.stride(),
                        static_cast<size_t>(whole.n) * sizeof(float)) == 0);
    }
  });
}

}  // namespace
}  // namespace varlen
