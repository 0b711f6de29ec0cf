// Sparse heads against the dense kernel: not compared here, since an op names no other; the rates
// are those of the issued arithmetic against the FMA peak, slices by turns.
//   varlen_bench_sparse-prefill [--quick] [--threads N] [--case TEXT]
#include "core/bench.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "ops/sparse-prefill/test-case.h"

namespace varlen::sparse_prefill {
namespace {

struct Case {
  const char* name;
  DType dtype;
  int32_t length;
  Words pattern;
};

std::vector<Case> Cases() {
  constexpr DType kBF16 = DType::kBF16, kF32 = DType::kF32;
  const Words grid = Node(Kind::kGrid, {0, -1, 196, 5, 5, kRowLines | kColumnLines, 16, 256});
  return {
      {"dense-4k-bfloat16", kBF16, 4096, Node(Kind::kDense, {})},
      {"dense-4k-float32", kF32, 4096, Node(Kind::kDense, {})},
      {"a-shape-16k-bfloat16", kBF16, 16384, Node(Kind::kAShape, {1024, 4096})},
      {"grid-16k-bfloat16", kBF16, 16384, grid},
      {"slashes-16k-bfloat16", kBF16, 16384,
       Node(Kind::kGrid, {0, -1, 196, 0, 0, kSlashLines, 0, 196})},
      {"vertical-slash-16k-bfloat16", kBF16, 16384,
       VerticalSlash(64, {0, 1, 2, 3}, {0, 64, 128, 4000, 9000})},
  };
}

double IssuedFlops(const Forward& params) {
  PlanView view;
  Head head;
  if (!PlanView::Open(params.plan, &view).ok() || !head.Open(view, 0, 0).ok()) return 0;
  double counts[kCountWords];
  CountHead(head, INT64_MAX, counts);
  return 4 * counts[2] * static_cast<double>(params.q.shape[2]);
}

int Main(int argc, char** argv) {
  double seconds = 1;
  int threads = 1;
  const char* only = "";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) seconds = 0.2;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) threads = std::atoi(argv[++i]);
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) only = argv[++i];
  }
  for (const Case& c : Cases()) {
    if (std::strstr(c.name, only) == nullptr) continue;
    const std::vector<Lens> lens{{c.length, c.length}};
    const Forward params =
        ForwardOf(lens, {c.dtype, 1, 1, 128, 128}, PlanWords(lens, 1, c.pattern));
    const auto run = [&] {
      if (!Run(params).ok()) std::exit(1);
    };
    bench::Print("sparsePrefill", c.name, threads,
                 bench::Measure(run, IssuedFlops(params), threads, seconds));
  }
  return 0;
}

}  // namespace
}  // namespace varlen::sparse_prefill

int main(int argc, char** argv) { return varlen::sparse_prefill::Main(argc, argv); }
