// C = A B in float32 (and bfloat16 storage) at the shapes that matter: a square product,
// attention's inner products, and the linear layers of a small transformer, where B is a weight
// stored [columns][rows].
//   varlen_bench_gemm [--quick] [--case NAME]
#include <cstring>
#include <vector>

#include "core/bench.h"
#include "core/gemm.h"
#include "core/tensor.h"

namespace varlen {
namespace {

struct Case {
  const char* name;
  int64_t m, n, k;
  bool b_transposed;
  DType dtype;
};

constexpr Case kCases[] = {
    {"square-2048", 2048, 2048, 2048, false, DType::kF32},
    {"square-512", 512, 512, 512, false, DType::kF32},
    {"scores-2048x2048x128", 2048, 2048, 128, true, DType::kF32},
    {"values-2048x128x2048", 2048, 128, 2048, false, DType::kF32},
    {"linear-2048x768x256", 2048, 768, 256, true, DType::kF32},
    {"linear-2048x256x1024", 2048, 256, 1024, true, DType::kF32},
    {"linear-300x1024x256", 300, 1024, 256, true, DType::kF32},
    {"square-2048-bfloat16", 2048, 2048, 2048, false, DType::kBF16},
};

Tensor Random(DType dtype, int64_t rows, int64_t columns) {
  Tensor t = Tensor::Empty(dtype, {rows, columns});
  uint32_t state = 1;
  for (int64_t i = 0; i < t.size(); ++i) {
    state = state * 1664525 + 1013904223;
    const float value = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    if (dtype == DType::kF32) t.data<float>()[i] = value;
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(value);
  }
  return t;
}

void Run(const Case& c, double seconds) {
  const Tensor a = Random(c.dtype, c.m, c.k);
  const Tensor b = c.b_transposed ? Random(c.dtype, c.n, c.k) : Random(c.dtype, c.k, c.n);
  const Tensor out = Tensor::Empty(c.dtype, {c.m, c.n});
  Gemm gemm{c.m, c.n, c.k, {}, {}, {}};
  gemm.a = {a.data<char>(), c.dtype, a.strides[0]};
  gemm.b = {b.data<char>(), c.dtype, b.strides[0], c.b_transposed};
  gemm.c = {out.data<char>(), c.dtype, out.strides[0]};
  const double flops = 2.0 * static_cast<double>(c.m * c.n) * static_cast<double>(c.k);
  for (int threads : {1, 2}) {
    const auto multiply = [&] { (void)Multiply(gemm).ok(); };
    bench::Print("gemm", c.name, threads, bench::Measure(multiply, flops, threads, seconds));
  }
}

}  // namespace
}  // namespace varlen

int main(int argc, char** argv) {
  double seconds = 1.0;
  const char* only = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) seconds = 0.2;
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) only = argv[++i];
  }
  for (const varlen::Case& c : varlen::kCases) {
    if (only == nullptr || std::strcmp(only, c.name) == 0) varlen::Run(c, seconds);
  }
}
