// OpenBLAS at the shapes of native/core/gemm_bench.cc: best of short slices, one JSON line per
// case.
//   g++ -O2 gemm_openblas.cc -lopenblas -o gemm_openblas && ./gemm_openblas [threads] [seconds]
#include <cblas.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" void openblas_set_num_threads(int threads);

namespace {

struct Case {
  const char* name;
  int m, n, k;
  bool b_transposed;
};

constexpr Case kCases[] = {
    {"square-2048", 2048, 2048, 2048, false},
    {"square-512", 512, 512, 512, false},
    {"scores-2048x2048x128", 2048, 2048, 128, true},
    {"values-2048x128x2048", 2048, 128, 2048, false},
    {"linear-2048x768x256", 2048, 768, 256, true},
    {"linear-2048x256x1024", 2048, 256, 1024, true},
    {"linear-300x1024x256", 300, 1024, 256, true},
};

double Seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 1.0;
  openblas_set_num_threads(threads);
  for (const Case& c : kCases) {
    std::vector<float> a(static_cast<size_t>(c.m) * c.k, 0.5f),
        b(static_cast<size_t>(c.n) * c.k, 0.25f);
    std::vector<float> out(static_cast<size_t>(c.m) * c.n);
    const auto transposed = c.b_transposed ? CblasTrans : CblasNoTrans;
    const int ldb = c.b_transposed ? c.k : c.n;
    double best = 1e9;
    const double end = Seconds() + seconds;
    for (int slice = 0; slice < 5 || Seconds() < end; ++slice) {
      const double start = Seconds();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed, c.m, c.n, c.k, 1, a.data(), c.k,
                  b.data(), ldb, 0, out.data(), c.n);
      const double took = Seconds() - start;
      if (took < best) best = took;
    }
    std::printf(
        "{\"op\":\"gemm\",\"impl\":\"openblas\",\"case\":\"%s\",\"threads\":%d,\"gflops\":%.1f}\n",
        c.name, threads, 2.0 * c.m * c.n * c.k / best * 1e-9);
    std::fflush(stdout);
  }
}
