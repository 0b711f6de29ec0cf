#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/simt/test_kernels.h"

// A whole kernel on the sm_80 instructions: cp.async double buffer, XOR swizzle, ldmatrix, mma.
namespace varlen::simt::testing {
namespace {

// C[m, n] = A[m, k] B[n, k]^T in float32. A block of 2 x 2 warps makes a 64 x 64 tile, 32 k at a
// time. kSwizzled off shows the bank conflicts that the swizzle is for.
template <class T, bool kSwizzled = true>
struct Gemm {
  static constexpr int kThreads = 128;
  static constexpr int kTile = 64, kDepth = 32, kStages = 2;
  static constexpr int kStageBytes = 2 * kTile * kDepth * 2;
  static constexpr int64_t kSharedBytes = kStages * kStageBytes;

  struct Params {
    const T *a, *b;
    float* c;
    int m, n, k;  // k: a multiple of 8
  };

  // Element offset of 16-byte chunk `chunk` of row `row`: rows are 64 bytes, so two of them share a
  // 128-byte line.
  static SIMT_FN int At(int row, int chunk) {
    return (row * 4 + (kSwizzled ? chunk ^ (row >> 1 & 3) : chunk)) * 8;
  }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int blocks_n = (p.n + kTile - 1) / kTile;
    const int m0 = static_cast<int>(BlockIndex()) / blocks_n * kTile;
    const int n0 = static_cast<int>(BlockIndex()) % blocks_n * kTile;
    const int thread = ThreadIndex(), lane = LaneIndex(), warp = WarpIndex();
    const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;

    const auto tile = [&](int stage, int operand) {
      return reinterpret_cast<T*>(shared + stage * kStageBytes + operand * kStageBytes / 2);
    };
    const auto load = [&](int stage, int k0) {
      for (int i = 0; i < 2; ++i) {
        const int id = thread + i * kThreads, row = id / 4, chunk = id % 4, k = k0 + chunk * 8;
        const bool in_a = m0 + row < p.m && k < p.k, in_b = n0 + row < p.n && k < p.k;
        CopyAsync16(tile(stage, 0) + At(row, chunk), p.a + (in_a ? int64_t{m0 + row} * p.k + k : 0),
                    in_a ? 16 : 0);
        CopyAsync16(tile(stage, 1) + At(row, chunk), p.b + (in_b ? int64_t{n0 + row} * p.k + k : 0),
                    in_b ? 16 : 0);
      }
      CopyAsyncCommit();
    };

    float c[2][4][4] = {};
    const int steps = (p.k + kDepth - 1) / kDepth;
    load(0, 0);
    for (int step = 0; step < steps; ++step) {
      const int stage = step % 2;
      CopyAsyncWait<0>();
      SyncThreads();
      if (step + 1 < steps) load(stage ^ 1, (step + 1) * kDepth);
      for (int kk = 0; kk < kDepth / 16; ++kk) {
        uint32_t a[2][4], b[2][4];
        for (int i = 0; i < 2; ++i) {
          LoadMatrix(a[i], tile(stage, 0) + At(warp_m + i * 16 + lane % 16, kk * 2 + lane / 16));
        }
        for (int j = 0; j < 2; ++j) {
          LoadMatrix(b[j], tile(stage, 1) + At(warp_n + j * 16 + lane % 8 + lane / 16 * 8,
                                               kk * 2 + lane / 8 % 2));
        }
        for (int i = 0; i < 2; ++i) {
          for (int j = 0; j < 4; ++j)
            Mma<T>(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        for (int q = 0; q < 4; ++q) {
          const int row = m0 + warp_m + i * 16 + lane / 4 + q / 2 * 8;
          const int column = n0 + warp_n + j * 8 + lane % 4 * 2 + q % 2;
          if (row < p.m && column < p.n) Store(p.c + int64_t{row} * p.n + column, c[i][j][q]);
        }
      }
    }
  }
};

template <class T>
struct Problem {
  Problem(int m, int n, int k)
      : m(m),
        n(n),
        k(k),
        a(NormalValues<T>(int64_t{m} * k, 1)),
        b(NormalValues<T>(int64_t{n} * k, 2)),
        c(int64_t{m} * n) {}

  template <class Kernel>
  LaunchResult Run(const LaunchOptions& options) const {
    const int64_t grid = int64_t{(m + 63) / 64} * ((n + 63) / 64);
    return Launch<Kernel>(grid, Kernel::kSharedBytes, {a.data(), b.data(), c.data(), m, n, k},
                          options);
  }
  // Largest error of c, relative to what float32 sums of k terms may be off by.
  double Error() const {
    double worst = 0;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        double want = 0, size = 0;
        for (int x = 0; x < k; ++x) {
          const double term = double{ToFloat(a[i * k + x])} * ToFloat(b[j * k + x]);
          want += term;
          size += std::abs(term);
        }
        const double error = std::abs(c[int64_t{i} * n + j] - want) / (size * k * 0x1p-24);
        if (!(error <= worst)) worst = error;  // a NaN stays
      }
    }
    return worst;
  }

  int m, n, k;
  GlobalArray<T> a, b;
  GlobalArray<float> c;
};

TEST_CASE("the tiled GEMM equals the plain product on ragged sizes and 8 seeds") {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Problem<bfloat16> problem(seed == 0 ? 200 : 65, seed == 0 ? 136 : 70, 104);
    const LaunchResult result = problem.Run<Gemm<bfloat16>>({.seed = seed});
    REQUIRE(std::string(result.message()) == "");
    CHECK(problem.Error() <= 1);
  }
  const Problem<half> problem(70, 64, 72);
  REQUIRE(std::string(problem.Run<Gemm<half>>({.seed = 9}).message()) == "");
  CHECK(problem.Error() <= 1);
}

TEST_CASE("blocks on several host threads give the same bits") {
  const Problem<bfloat16> alone(150, 150, 64), together(150, 150, 64), resident(150, 150, 64);
  REQUIRE(alone.Run<Gemm<bfloat16>>({}).ok());
  REQUIRE(together.Run<Gemm<bfloat16>>({.parallel = true}).ok());
  REQUIRE(resident.Run<Gemm<bfloat16>>({.resident_blocks = 4}).ok());
  for (int64_t i = 0; i < alone.c.size(); ++i) {
    REQUIRE(alone.c[i] == together.c[i]);
    REQUIRE(alone.c[i] == resident.c[i]);
  }
}

TEST_CASE("the swizzle removes the bank conflicts that plain rows have") {
  const Problem<bfloat16> problem(64, 64, 64);
  const auto excess = [](const LaunchResult& result) {
    int64_t sum = 0;
    for (const BankCount& count : result.bank_conflicts) sum += count.wavefronts - count.ideal;
    return sum;
  };
  const LaunchResult swizzled = problem.Run<Gemm<bfloat16, true>>({.count_bank_conflicts = true});
  const LaunchResult plain = problem.Run<Gemm<bfloat16, false>>({.count_bank_conflicts = true});
  REQUIRE(swizzled.ok());
  REQUIRE(plain.ok());
  REQUIRE(swizzled.bank_conflicts.size() == 4);  // two cp.async and two ldmatrix lines
  CHECK(excess(swizzled) == 0);
  // 64-byte rows: 8 of them touch each half of the banks 4 times, 4 wavefronts instead of 1.
  for (const BankCount& count : plain.bank_conflicts) {
    if (count.site.line() != swizzled.bank_conflicts[2].site.line()) continue;
    CHECK(count.wavefronts == 4 * count.ideal);
  }
  CHECK(excess(plain) > 0);
}

}  // namespace
}  // namespace varlen::simt::testing
