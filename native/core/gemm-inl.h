// The one micro-kernel: a register tile of C = A B with B in packed panels, A where it stands.
// Attention, linear and fused log-prob all multiply with it. Included once per target.
#if defined(VARLEN_CORE_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_GEMM_INL_H_
#undef VARLEN_CORE_GEMM_INL_H_
#else
#define VARLEN_CORE_GEMM_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
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

// sum_k A(i, k) B(k, :) for kRows rows and kVectors vectors of one panel; row k of the panel is at
// b + k * kPanel. Every element is summed in the order of k, so that its bits do not depend on the
// tile it falls in.
template <Order kOrder, int kRows, int kVectors, class Finish>
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
      for (int v = 0; v < kVectors; ++v) sum[i][v] = hn::MulAdd(broadcast, row[v], sum[i][v]);
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

template <Order kOrder, int kVectors, class Finish>
struct Tiles {
  using Function = void(int64_t, const float*, int64_t, const float*, const Finish&);
  template <int... kRows>
  static constexpr auto Make(std::integer_sequence<int, kRows...>) {
    return std::array<Function*, kTileRows>{&MultiplyTile<kOrder, kRows + 1, kVectors, Finish>...};
  }
  // By rows - 1.
  static constexpr std::array<Function*, kTileRows> kByRows =
      Make(std::make_integer_sequence<int, kTileRows>());
};

// C = A B for any number of rows and one panel of which `columns` columns are wanted (whole vectors
// are computed and finished). Rows are cut into tiles of nearly equal height.
template <Order kOrder, class Finish>
HWY_INLINE void MultiplyPanel(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                              const float* panel, int64_t columns, Finish finish) {
  const auto& by_rows = VectorsFor(columns) == 2 ? Tiles<kOrder, 2, Finish>::kByRows
                                                 : Tiles<kOrder, 1, Finish>::kByRows;
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
