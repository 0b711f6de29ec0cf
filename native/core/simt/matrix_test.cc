#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "core/simt/test_kernels.h"

// Fragment layouts of every matrix instruction, against plain indexing and a plain product.
namespace varlen::simt::testing {
namespace {

// Bits row * 100 + column, so that a misplaced element shows where it came from.
void FillNumbered(uint16_t* matrix, int rows, int columns) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) matrix[r * columns + c] = static_cast<uint16_t>(r * 100 + c);
  }
}

TEST_CASE("ldmatrix gives lane l the elements (l / 4, 2 (l mod 4)) and its neighbour") {
  // Four 8x8 matrices, one above the other.
  const LaunchResult result = RunBody<32>(4 * 128, [](unsigned char* shared) {
    auto* tile = reinterpret_cast<uint16_t*>(shared);
    if (LaneIndex() == 0) FillNumbered(tile, 32, 8);
    SyncWarp();
    uint32_t four[4], two[2];
    LoadMatrix(four, tile + LaneIndex() * 8);
    LoadMatrix(two, tile + LaneIndex() * 8);
    const int row = LaneIndex() / 4, column = LaneIndex() % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      CHECK(static_cast<int>(four[m] & 0xffff) == (m * 8 + row) * 100 + column);
      CHECK(static_cast<int>(four[m] >> 16) == (m * 8 + row) * 100 + column + 1);
    }
    CHECK(two[0] == four[0]);
    CHECK(two[1] == four[1]);
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("ldmatrix.trans gives the elements of the transposed matrices") {
  const LaunchResult result = RunBody<32>(4 * 128, [](unsigned char* shared) {
    auto* tile = reinterpret_cast<uint16_t*>(shared);
    if (LaneIndex() == 0) FillNumbered(tile, 32, 8);
    SyncWarp();
    uint32_t four[4], two[2];
    LoadMatrixTransposed(four, tile + LaneIndex() * 8);
    LoadMatrixTransposed(two, tile + LaneIndex() * 8);
    const int row = LaneIndex() / 4, column = LaneIndex() % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      CHECK(static_cast<int>(four[m] & 0xffff) == (m * 8 + column) * 100 + row);
      CHECK(static_cast<int>(four[m] >> 16) == (m * 8 + column + 1) * 100 + row);
    }
    CHECK(two[0] == four[0]);
    CHECK(two[1] == four[1]);
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("stmatrix is the inverse of ldmatrix") {
  const LaunchResult result = RunBody<32>(2 * 512, [](unsigned char* shared) {
    auto* tile = reinterpret_cast<uint16_t*>(shared);
    if (LaneIndex() == 0) FillNumbered(tile, 32, 8);
    SyncWarp();
    uint32_t registers[4];
    LoadMatrix(registers, tile + LaneIndex() * 8);
    StoreMatrix(tile + 256 + LaneIndex() * 8, registers);
    SyncWarp();
    for (int i = 0; i < 8; ++i) {
      CHECK(Load(tile + 256 + LaneIndex() * 8 + i) == Load(tile + LaneIndex() * 8 + i));
    }
  });
  CHECK(std::string(result.message()) == "");
}

template <class T>
void CheckMma() {
  const std::vector<T> a = SmallIntegers<T>(16 * 16, 1), b = SmallIntegers<T>(16 * 8, 2);
  const std::vector<T> c = SmallIntegers<T>(16 * 8, 3);
  const LaunchResult result = RunBody<32>(0, [&](unsigned char*) {
    const int g = LaneIndex() / 4, t = LaneIndex() % 4;
    const auto pair_a = [&](int row, int column) {
      return PackPair<T>(ToFloat(a[row * 16 + column]), ToFloat(a[row * 16 + column + 1]));
    };
    const auto pair_b = [&](int row) {
      return PackPair<T>(ToFloat(b[row * 8 + g]), ToFloat(b[(row + 1) * 8 + g]));
    };
    const uint32_t a_registers[4] = {pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, 2 * t + 8),
                                     pair_a(g + 8, 2 * t + 8)};
    float sum[4];
    const auto row = [&](int i) { return g + 8 * (i / 2); };
    const auto column = [&](int i) { return 2 * t + i % 2; };
    for (int i = 0; i < 4; ++i) sum[i] = ToFloat(c[row(i) * 8 + column(i)]);
    Mma<T>(sum, a_registers, pair_b(2 * t), pair_b(2 * t + 8));
    for (int i = 0; i < 4; ++i) {
      float want = ToFloat(c[row(i) * 8 + column(i)]);
      for (int k = 0; k < 16; ++k)
        want += ToFloat(a[row(i) * 16 + k]) * ToFloat(b[k * 8 + column(i)]);
      CHECK(sum[i] == want);
    }
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("mma.sync is the plain product of its fragments in bfloat16 and float16") {
  CheckMma<bfloat16>();
  CheckMma<half>();
}

// --- wgmma --------------------------------------------------------------------------------------

struct Layout {
  Swizzle swizzle;
  bool mn_major;
};

struct Offsets {
  int leading, stride;
};
Offsets OffsetsOf(int size, Layout layout) {
  const int span = SwizzleSpan(layout.swizzle);
  if (layout.swizzle == Swizzle::kNone) return {size / 8 * 128, 128};
  return {layout.mn_major ? 16 * span : 16, 8 * span};
}

// Stores element (mn, k) of a [size, 16] operand the way the PTX ISA lays it out, written here from
// its pictures and not from the emulator's formula.
template <class T>
void StoreOperand(unsigned char* tile, const std::vector<T>& values, int size, Layout layout) {
  const int span = SwizzleSpan(layout.swizzle);
  const auto put = [&](int row, int chunk, int element, T value) {
    const int phase = layout.swizzle == Swizzle::k128Bytes  ? row % 8
                      : layout.swizzle == Swizzle::k64Bytes ? row % 8 / 2
                      : layout.swizzle == Swizzle::k32Bytes ? row % 8 / 4
                                                            : 0;
    Store(reinterpret_cast<T*>(tile + row * span + (chunk ^ phase) * 16) + element, value);
  };
  for (int mn = 0; mn < size; ++mn) {
    for (int k = 0; k < 16; ++k) {
      const T value = values[mn * 16 + k];
      if (layout.swizzle == Swizzle::kNone) {
        // Core matrices of 8 rows of 16 bytes: all of k 0-7 first, then all of k 8-15.
        const int core = k / 8 * (size / 8) + mn / 8;
        put(core * 8 + (layout.mn_major ? k : mn) % 8, 0, (layout.mn_major ? mn : k) % 8, value);
      } else if (layout.mn_major) {
        // Panels of `span` bytes of mn, each 16 rows (k) high.
        const int columns = span / 2, column = mn % columns;
        put(mn / columns * 16 + k, column / 8, column % 8, value);
      } else {
        put(mn, k / 8, k % 8, value);  // a span longer than 32 bytes has room for further k
      }
    }
  }
}

template <class T, int kN, bool kTransposeA, bool kTransposeB, bool kFromRegisters>
void CheckWgmma(Swizzle swizzle_a, Swizzle swizzle_b, uint64_t seed) {
  constexpr int kTileBytes = 64 * 1024;
  const auto a = SmallIntegers<T>(64 * 16, seed + 10), b = SmallIntegers<T>(kN * 16, seed + 20);
  const LaunchResult result =
      RunBody<128>(2 * kTileBytes, {.seed = seed}, [&](unsigned char* shared) {
        const Layout layout_a{swizzle_a, kTransposeA}, layout_b{swizzle_b, kTransposeB};
        if (ThreadIndex() == 0) {
          StoreOperand(shared, a, 64, layout_a);
          StoreOperand(shared + kTileBytes, b, kN, layout_b);
          FenceAsyncProxy();
        }
        SyncThreads();
        const auto [leading_a, stride_a] = OffsetsOf(64, layout_a);
        const auto [leading_b, stride_b] = OffsetsOf(kN, layout_b);
        const uint64_t a_at = MatrixDescriptor(shared, leading_a, stride_a, swizzle_a);
        const uint64_t b_at = MatrixDescriptor(shared + kTileBytes, leading_b, stride_b, swizzle_b);
        const int w = WarpIndex(), l = LaneIndex();
        float d[kN / 2];
        for (int i = 0; i < kN / 2; ++i) d[i] = static_cast<float>(i);
        WgmmaFence();
        if constexpr (kFromRegisters) {
          uint32_t registers[4];
          for (int r = 0; r < 4; ++r) {
            const T* pair = &a[(w * 16 + l / 4 + 8 * (r % 2)) * 16 + l % 4 * 2 + 8 * (r / 2)];
            registers[r] = PackPair<T>(ToFloat(pair[0]), ToFloat(pair[1]));
          }
          Wgmma<T, kN, kTransposeB>(d, registers, b_at, true);
        } else {
          Wgmma<T, kN, kTransposeB, kTransposeA>(d, a_at, b_at, true);
        }
        WgmmaCommit();
        WgmmaWait<0>();
        for (int i = 0; i < kN / 2; ++i) {
          const int row = w * 16 + l / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + l % 4 * 2 + i % 2;
          float want = static_cast<float>(i);
          for (int k = 0; k < 16; ++k) {
            want += ToFloat(a[row * 16 + k]) * ToFloat(b[column * 16 + k]);
          }
          CHECK(d[i] == want);
        }
      });
  INFO("swizzles " << static_cast<int>(swizzle_a) << " " << static_cast<int>(swizzle_b));
  CHECK(std::string(result.message()) == "");
}

constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k32Bytes, Swizzle::k64Bytes,
                                 Swizzle::k128Bytes};

TEST_CASE("wgmma is the plain product for every swizzle and major order of its operands") {
  for (uint64_t seed : {0, 1}) {  // executed at issue and at the wait
    for (Swizzle swizzle : kSwizzles) {
      CheckWgmma<bfloat16, 64, false, false, false>(swizzle, Swizzle::k128Bytes, seed);
      CheckWgmma<bfloat16, 64, true, false, false>(swizzle, Swizzle::k128Bytes, seed);
      CheckWgmma<bfloat16, 128, false, false, false>(Swizzle::k128Bytes, swizzle, seed);
      CheckWgmma<bfloat16, 128, false, true, false>(Swizzle::k128Bytes, swizzle, seed);
      CheckWgmma<bfloat16, 128, false, true, true>(Swizzle::k128Bytes, swizzle, seed);
    }
    CheckWgmma<half, 256, false, false, true>(Swizzle::kNone, Swizzle::k128Bytes, seed);
    CheckWgmma<half, 16, false, false, false>(Swizzle::k128Bytes, Swizzle::k128Bytes, seed);
  }
}

TEST_CASE("wgmma without accumulation ignores what the registers held") {
  const LaunchResult result = RunBody<128>(16 * 1024, [](unsigned char* shared) {
    std::memset(shared + ThreadIndex() * 128, 0, 128);
    SyncThreads();
    float d[8];
    for (float& value : d) value = 7;
    const uint64_t tile = MatrixDescriptor(shared, 16, 1024, Swizzle::k128Bytes);
    WgmmaFence();
    Wgmma<bfloat16, 16>(d, tile, tile, false);
    WgmmaCommit();
    WgmmaWait<0>();
    for (float value : d) CHECK(value == 0);
  });
  CHECK(std::string(result.message()) == "");
}

}  // namespace
}  // namespace varlen::simt::testing
