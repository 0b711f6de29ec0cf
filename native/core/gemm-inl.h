// The one micro-kernel: a register tile of C = A B with B in packed panels, A where it stands.
// Attention, linear and fused log-prob all multiply with it. Included once per target.
//
// Depth goes by units of 32 bits: one float32, or, where the CPU multiplies them directly, two
// bfloat16 that follow each other in depth. Both kinds of unit are moved as float.
#if defined(VARLEN_CORE_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_GEMM_INL_H_
#undef VARLEN_CORE_GEMM_INL_H_
#else
#define VARLEN_CORE_GEMM_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// A tile is kTileRows x 2 vectors: its accumulators, two vectors of B and a broadcast of A fill
// the registers (32 on AVX-512 and NEON, 16 on AVX2 and SSE).
inline constexpr int kTileRows = HWY_TARGET == HWY_AVX3   ? 14
                                 : HWY_TARGET == HWY_AVX2 ? 6
                                 : HWY_TARGET == HWY_NEON ? 12
                                                          : 5;
inline constexpr int64_t kPanel = 2 * kLanes;  // columns of a panel of B

// How many vectors the last panel needs for `columns` columns.
constexpr int VectorsFor(int64_t columns) { return columns > kLanes ? 2 : 1; }
constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr int64_t NumPanels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Where A's elements stand. Neither form needs A to be repacked.
enum class Order {
  kRows,     // (i, k) at a[i * stride + k]
  kColumns,  // (i, k) at a[k * stride + i]
};

// What happens to a finished row of the tile. All address C as c[i * stride + column].
struct StoreTile {
  float* c;
  int64_t stride;
  StoreTile Below(int64_t rows) const { return {c + rows * stride, stride}; }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    hn::StoreU(sum, Floats(), c + i * stride + column);
  }
};
struct AddTile {
  float* c;
  int64_t stride;
  AddTile Below(int64_t rows) const { return {c + rows * stride, stride}; }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    float* at = c + i * stride + column;
    hn::StoreU(hn::Add(hn::LoadU(Floats(), at), sum), Floats(), at);
  }
};
// The sum times a constant.
struct ScaleTile {
  float* c;
  int64_t stride;
  float factor;
  ScaleTile Below(int64_t rows) const { return {c + rows * stride, stride, factor}; }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    const Floats d;
    hn::StoreU(hn::Mul(sum, hn::Set(d, factor)), d, c + i * stride + column);
  }
};
// c = c * factor[i] + sum: the rescaled accumulator of online softmax.
struct RescaleTile {
  float* c;
  int64_t stride;
  const float* factor;
  RescaleTile Below(int64_t rows) const { return {c + rows * stride, stride, factor + rows}; }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    float* at = c + i * stride + column;
    const Vector scaled = hn::MulAdd(hn::LoadU(Floats(), at), hn::Set(Floats(), factor[i]), sum);
    hn::StoreU(scaled, Floats(), at);
  }
};

// A unit is one float32.
struct FloatUnits {
  static constexpr int64_t kPerUnit = 1;
  static HWY_INLINE Vector MulAdd(Vector a, Vector b, Vector sum) { return hn::MulAdd(a, b, sum); }
};

// A unit is two bfloat16, the earlier one in the low half. Sums are float32; subnormal inputs and
// sums count as zero (vdpbf16ps).
#if HWY_TARGET == HWY_AVX3
struct Bfloat16Units {
  static constexpr int64_t kPerUnit = 2;
  // Assembly because no Highway target has it; Isa::kAvx512Bf16 says that the CPU does.
  static HWY_INLINE Vector MulAdd(Vector a, Vector b, Vector sum) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
  // Both vectors rounded to bfloat16 (to nearest, ties to even; subnormals become zero), the lanes
  // of `first` before those of `second`.
  static HWY_INLINE Vector Join(Vector first, Vector second) {
    Vector joined;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(joined.raw) : "v"(first.raw), "v"(second.raw));
    return joined;
  }
  // The same, lane by lane: unit i is (first[i], second[i]).
  static HWY_INLINE Vector Zip(Vector first, Vector second) {
    HWY_ALIGN static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i joined = _mm512_castps_si512(Join(first, second).raw);
    return Vector{_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), joined))};
  }
};
#endif

template <class Units>
constexpr int64_t UnitsFor(int64_t elements) {
  return (elements + Units::kPerUnit - 1) / Units::kPerUnit;
}

// sum_k A(i, k) B(k, :) for kRows rows and kVectors vectors of one panel; unit k of the panel is at
// b + k * kPanel. Every element is summed in the order of k, so that its bits do not depend on the
// tile it falls in.
template <class Units, Order kOrder, int kRows, int kVectors, class Finish>
HWY_NOINLINE void MultiplyTile(int64_t depth, const float* HWY_RESTRICT a, int64_t a_stride,
                               const float* HWY_RESTRICT b, const Finish& finish) {
  const Floats d;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = hn::Zero(d);
  }
  // Rows of A are reached from every third one by one stride or two: all 14 addresses fit in the
  // general registers.
  constexpr int kPointers = kOrder == Order::kRows ? (kRows + 2) / 3 : 1;
  const float* pointers[kPointers];
#pragma GCC unroll 16
  for (int i = 0; i < kPointers; ++i) pointers[i] = a + 3 * i * a_stride;

  if constexpr (requires { finish.Prefetch(0); }) {
    for (int i = 0; i < kRows; ++i) finish.Prefetch(i);
  }
  for (int64_t k = 0; k < depth; ++k) {
    // Without this the compiler keeps one pointer per row and spills them.
    if constexpr (kOrder == Order::kRows) asm("" : "+r"(a_stride));
    Vector row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = hn::LoadU(d, b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const float* element;
      if constexpr (kOrder == Order::kRows) {
        element = pointers[i / 3] + (i % 3) * a_stride;
      } else {
        element = pointers[0] + i;
      }
      const Vector broadcast = hn::Set(d, *element);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Units::MulAdd(broadcast, row[v], sum[i][v]);
    }
    b += kPanel;
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) pointers[i] += kOrder == Order::kRows ? 1 : a_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) finish(i, v * kLanes, sum[i][v]);
  }
}

template <class Units, Order kOrder, int kVectors, class Finish>
struct Tiles {
  using Function = void(int64_t, const float*, int64_t, const float*, const Finish&);
  template <int... kRows>
  static constexpr auto Make(std::integer_sequence<int, kRows...>) {
    return std::array<Function*, kTileRows>{
        &MultiplyTile<Units, kOrder, kRows + 1, kVectors, Finish>...};
  }
  // By rows - 1.
  static constexpr std::array<Function*, kTileRows> kByRows =
      Make(std::make_integer_sequence<int, kTileRows>());
};

// C = A B for any number of rows and one panel of which `columns` columns are wanted (whole vectors
// are computed and finished). Rows are cut into tiles of nearly equal height. `depth`, the strides
// of A and the panel are in units.
template <Order kOrder, class Units = FloatUnits, class Finish>
HWY_INLINE void MultiplyPanel(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                              const float* panel, int64_t columns, Finish finish) {
  const auto& by_rows = VectorsFor(columns) == 2 ? Tiles<Units, kOrder, 2, Finish>::kByRows
                                                 : Tiles<Units, kOrder, 1, Finish>::kByRows;
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  while (rows > 0) {
    const int64_t height = (rows + tiles - 1) / tiles;
    by_rows[static_cast<size_t>(height - 1)](depth, a, a_stride, panel, finish);
    a += kOrder == Order::kRows ? height * a_stride : height;
    finish = finish.Below(height);
    rows -= height;
    --tiles;
  }
}

// Widens n elements and multiplies them by `scale`; zeros up to `padded` elements.
template <class T>
HWY_INLINE void WidenRow(const T* from, int64_t n, float scale, float* to, int64_t padded) {
  const Floats d;
  const Vector factor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::Mul(LoadAsFloat(from + i), factor), d, to + i);
  }
  if (i < n) {
    hn::StoreU(hn::Mul(LoadFirst(from + i, n - i), factor), d, to + i);
    i += kLanes;
  }
  for (; i < padded; i += kLanes) hn::StoreU(hn::Zero(d), d, to + i);
}

// Narrows n elements.
template <class T>
HWY_INLINE void StoreRow(const float* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) StoreFromFloat(hn::LoadU(Floats(), from + i), to + i);
  if (i < n) StoreFirst(hn::LoadU(Floats(), from + i), to + i, n - i);
}

// Row `row` of packed panels: element c goes to panels[c / kPanel][row][c % kPanel], where one
// panel has `panel_rows` rows. Columns past n are zero.
template <class T>
HWY_INLINE void WidenRowToPanels(const T* from, int64_t n, float* panels, int64_t panel_rows,
                                 int64_t row) {
  float* to = panels + row * kPanel;
  for (int64_t c = 0; c < n; c += kPanel, to += panel_rows * kPanel) {
    WidenRow(from + c, std::min(n - c, kPanel), 1.0f, to, kPanel);
  }
}

#if HWY_TARGET == HWY_AVX3
// Unit row `unit` of packed panels from two rows of bfloat16; no second row: zeros.
HWY_INLINE void ZipRowsToPanels(const bfloat16* first, const bfloat16* second, int64_t n,
                                float* panels, int64_t panel_units, int64_t unit) {
  HWY_ALIGN static constexpr uint16_t kZip[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  static_assert(kPanel == 32);
  float* to = panels + unit * kPanel;
  for (int64_t c = 0; c < n; c += kPanel, to += panel_units * kPanel) {
    const auto mask = static_cast<__mmask32>(n - c >= kPanel ? ~0u : (1u << (n - c)) - 1);
    const __m512i low = _mm512_maskz_loadu_epi16(mask, first + c);
    const __m512i high =
        second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, second + c);
    for (int v = 0; v < 2; ++v) {
      _mm512_storeu_si512(to + v * kLanes,
                          _mm512_permutex2var_epi16(low, _mm512_load_si512(kZip[v]), high));
    }
  }
}
#endif

// The n elements of a row as units of depth, zeros up to `padded` units.
template <class Units, class T>
HWY_INLINE void PackRow(const T* from, int64_t n, float* to, int64_t padded) {
  if constexpr (Units::kPerUnit == 1) {
    WidenRow(from, n, 1.0f, to, padded);
  } else {
    static_assert(std::is_same_v<T, bfloat16>);
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
    std::memset(reinterpret_cast<T*>(to) + n, 0, static_cast<size_t>(2 * padded - n) * sizeof(T));
  }
}

// Rows [0, count) at row_at(i), n elements each, as packed panels of which they are the depth: unit
// u of panel p is at panels + (p * panel_units + u) * kPanel. Columns past n, and the second half
// of a last unit of one row, are zero.
template <class Units, class RowAt>
HWY_INLINE void PackRowsToPanels(int64_t count, const RowAt& row_at, int64_t n, float* panels,
                                 int64_t panel_units) {
  if constexpr (Units::kPerUnit == 1) {
    for (int64_t i = 0; i < count; ++i) WidenRowToPanels(row_at(i), n, panels, panel_units, i);
  } else {
    for (int64_t i = 0; i < count; i += 2) {
      ZipRowsToPanels(row_at(i), i + 1 < count ? row_at(i + 1) : nullptr, n, panels, panel_units,
                      i / 2);
    }
  }
}

// One panel of B = rows^T: element (k, c) is rows[c * stride + k], for k < depth rounded up to 4
// (readable) and c < kPanel.
HWY_INLINE void TransposeToPanel(const float* rows, int64_t stride, int64_t depth, int64_t columns,
                                 float* panel) {
  for (int64_t k = 0; k < depth; k += 4) {
    for (int64_t c = 0; c < VectorsFor(columns) * kLanes; c += kLanes) {
      TransposeRows(rows + c * stride + k, stride, panel + k * kPanel + c, kPanel);
    }
  }
}

// One panel of B = rows^T from rows of any storage type: element (k, c) is rows[c * stride + k] for
// k < depth; columns past `columns` are zero. Widens up to a panel of rows, 64 deep, and
// transposes.
template <class T>
void WidenTransposed(const T* rows, int64_t stride, int64_t depth, int64_t columns, float* panel) {
  constexpr int64_t kStage = 64;
  HWY_ALIGN float staged[kPanel * kStage];
  for (int64_t k = 0; k < depth; k += kStage) {
    const int64_t deep = std::min(kStage, depth - k);
    const int64_t readable = RoundUp(deep, 4);
    const float* from = staged;
    int64_t from_stride = kStage;
    if (std::is_same_v<T, float> && columns == kPanel && deep == readable) {
      from = reinterpret_cast<const float*>(rows + k);
      from_stride = stride;
    } else {
      for (int64_t c = 0; c < kPanel; ++c) {
        if (c < columns) {
          WidenRow(rows + c * stride + k, deep, 1.0f, staged + c * kStage, RoundUp(deep, kLanes));
        } else {
          std::fill_n(staged + c * kStage, readable, 0.0f);
        }
      }
    }
    if (readable == deep) {
      TransposeToPanel(from, from_stride, deep, kPanel, panel + k * kPanel);
    } else {  // the last rows of the transpose would run into the next panel
      HWY_ALIGN float tail[kPanel * kStage];
      TransposeToPanel(from, from_stride, readable, kPanel, tail);
      std::copy_n(tail, deep * kPanel, panel + k * kPanel);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_GEMM_INL_H_
