// Rates of the fused loss against the FMA peak and against this package's own matrix product in the
// same process. Floating-point operations are those of the products that have no way around:
// 2 T D V forward, 6 T D V backward (the logits again, dHidden, dWeight); T counts tokens.
//   varlen_bench_cross-entropy-from-hidden [--quick] [--threads N] [--case TEXT]
#include "core/bench.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "core/gemm.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden {
namespace {

struct Case {
  const char* name;
  DType dtype;
  int64_t tokens, size, vocab;
};

constexpr Case kCases[] = {
    {"t1024-d1024-v16384-float32", DType::kF32, 1024, 1024, 16384},
    {"t1024-d1024-v16384-bfloat16", DType::kBF16, 1024, 1024, 16384},
    {"t2048-d256-v8192-float32", DType::kF32, 2048, 256, 8192},
};
constexpr const char* kGemm = "gemm-2048x2048x1024-float32";

Tensor Random(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t = Tensor::Empty(dtype, shape);
  uint32_t state = 1;
  for (int64_t i = 0; i < t.size(); ++i) {
    state = state * 1664525 + 1013904223;
    const float value = 0.1f * (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    if (dtype == DType::kF32) t.data<float>()[i] = value;
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(value);
  }
  return t;
}

bool RunCase(const Case& c, int threads, double seconds) {
  Forward forward;
  forward.head = {Random(c.dtype, {c.tokens, c.size}), Random(c.dtype, {c.vocab, c.size}), {}};
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < c.tokens; ++t) targets.push_back(static_cast<int32_t>(t * 31 % c.vocab));
  forward.tokens.target_ids = {std::make_shared<const std::vector<int32_t>>(targets), {}};
  forward.out = {Tensor::Empty(DType::kF32, {}), Tensor::Empty(DType::kF32, {c.tokens}),
                 Tensor::Empty(DType::kF32, {c.tokens}), Tensor::Empty(DType::kF32, {c.tokens}),
                 Tensor::Empty(DType::kF64, {c.tokens})};
  Backward backward;
  backward.upstream.d_loss = Tensor::Empty(DType::kF32, {});
  *backward.upstream.d_loss.data<float>() = 1;
  backward.upstream.lse = forward.out.lse;
  backward.upstream.entropies = forward.out.entropies;
  backward.head = forward.head;
  backward.tokens = forward.tokens;
  backward.gradients.want_bias = false;
  backward.gradients.d_hidden = Tensor::Empty(c.dtype, {c.tokens, c.size});
  backward.gradients.d_weight = Tensor::Empty(DType::kF32, {c.vocab, c.size});
  if (!forward.Validate().ok() || !backward.Validate().ok()) return false;
  if (!Run(forward).ok() || !Run(backward).ok()) return false;

  const double product =
      2.0 * static_cast<double>(c.tokens * c.size) * static_cast<double>(c.vocab);
  const auto run_forward = [&] { (void)Run(forward).ok(); };
  const auto run_backward = [&] { (void)Run(backward).ok(); };
  const auto run_both = [&] {
    run_forward();
    run_backward();
  };
  bench::Print("crossEntropyFromHidden", c.name, threads,
               bench::Measure(run_forward, product, threads, seconds));
  bench::Print("crossEntropyFromHiddenBackward", c.name, threads,
               bench::Measure(run_backward, 3 * product, threads, seconds));
  bench::Print("crossEntropyFromHidden+Backward", c.name, threads,
               bench::Measure(run_both, 4 * product, threads, seconds));
  return true;
}

void RunGemm(int threads, double seconds) {
  constexpr int64_t kSide = 2048, kDepth = 1024;
  const Tensor a = Random(DType::kF32, {kSide, kDepth}), b = Random(DType::kF32, {kSide, kDepth}),
               out = Tensor::Empty(DType::kF32, {kSide, kSide});
  Gemm gemm{kSide, kSide, kDepth, {}, {}, {}};
  gemm.a = {a.data<float>(), DType::kF32, kDepth};
  gemm.b = {b.data<float>(), DType::kF32, kDepth, true};
  gemm.c = {out.data<float>(), DType::kF32, kSide};
  const auto multiply = [&] { (void)Multiply(gemm).ok(); };
  bench::Print("gemm", kGemm, threads,
               bench::Measure(multiply, 2.0 * kSide * kSide * kDepth, threads, seconds));
}

}  // namespace
}  // namespace varlen::cross_entropy_from_hidden

int main(int argc, char** argv) {
  using namespace varlen::cross_entropy_from_hidden;
  double seconds = 1.0;
  int only_threads = 0;
  const char* only = "";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) seconds = 0.2;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) only_threads = std::atoi(argv[++i]);
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) only = argv[++i];
  }
  const int all_threads = varlen::NumThreads();
  for (int threads : {1, all_threads}) {
    if (only_threads != 0 && threads != only_threads) continue;
    if (std::strstr(kGemm, only) != nullptr) RunGemm(threads, seconds);
    for (const Case& c : kCases) {
      if (std::strstr(c.name, only) == nullptr) continue;
      if (!RunCase(c, threads, seconds)) {
        std::fprintf(stderr, "%s: did not run\n", c.name);
        return 1;
      }
    }
    if (all_threads == 1) break;
  }
  return 0;
}
