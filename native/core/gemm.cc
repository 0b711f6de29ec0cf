#include "core/gemm.h"

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/gemm.cc"
#include "hwy/foreach_target.h"
//
#include "core/gemm-inl.h"
//
#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// Depth of one pass over a tile: a panel of B (64 KiB on AVX-512) and the tiles of A under it live
// in the second-level cache, and C is touched once per 512 products.
constexpr int64_t kDepth = 512;
// Rows of A packed at a time; the whole block is 224 KiB on AVX-512.
constexpr int64_t kBlockRows = 8 * kTileRows;
// A row of the packed block; not a multiple of 4 KiB, or its rows would share cache sets.
constexpr int64_t kRowStride = kDepth + 16;
// Packed B is held for as many columns as fit in this, at least one panel.
constexpr int64_t kPackedBytes = int64_t{16} << 20;
constexpr int64_t kPanelsPerPiece = 4;  // of packing work

// C is often not in the cache; asked for at the start of a tile it arrives before the tile is done.
HWY_INLINE void PrefetchForWriting(float* row) {
  for (int64_t i = 0; i < kPanel; i += 16) __builtin_prefetch(row + i, 1);
  __builtin_prefetch(row + kPanel - 1, 1);
}

// How a finished tile lands in float32 memory.
struct ScaleStore {
  float* c;
  int64_t stride;
  float alpha;
  ScaleStore Below(int64_t rows) const { return {c + rows * stride, stride, alpha}; }
  HWY_INLINE void Prefetch(int64_t i) const { PrefetchForWriting(c + i * stride); }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    const Floats d;
    hn::StoreU(hn::Mul(sum, hn::Set(d, alpha)), d, c + i * stride + column);
  }
};
struct ScaleAdd {
  float* c;
  int64_t stride;
  float alpha;
  ScaleAdd Below(int64_t rows) const { return {c + rows * stride, stride, alpha}; }
  HWY_INLINE void Prefetch(int64_t i) const { PrefetchForWriting(c + i * stride); }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    const Floats d;
    float* at = c + i * stride + column;
    hn::StoreU(hn::MulAdd(sum, hn::Set(d, alpha), hn::LoadU(d, at)), d, at);
  }
};

struct Blocking {
  int64_t depths;        // passes over k
  int64_t chunk_panels;  // panels of B packed at a time

  explicit Blocking(const Gemm& g) : depths((g.k + kDepth - 1) / kDepth) {
    const int64_t panel_bytes = std::max<int64_t>(1, g.k) * kPanel * int64_t{sizeof(float)};
    chunk_panels = std::clamp<int64_t>(kPackedBytes / panel_bytes, 1, NumPanels(g.n));
  }
};

// Panels [first, first + count) of op(B) for depth block `depth`: each [kc][kPanel] at
// packed + (panel * k + block start) * kPanel, panels counted from the chunk's first.
template <class T>
void PackB(const Gemm& g, int64_t depth, int64_t chunk_first, int64_t first, int64_t count,
           float* packed) {
  const int64_t k0 = depth * kDepth, kc = std::min(g.k - k0, kDepth);
  const T* b = static_cast<const T*>(g.b.data);
  for (int64_t p = first; p < first + count; ++p) {
    float* panel = packed + (p * g.k + k0) * kPanel;
    const int64_t column = (chunk_first + p) * kPanel;
    const int64_t columns = std::min(kPanel, g.n - column);
    if (!g.b.transposed) {
      for (int64_t k = 0; k < kc; ++k) {
        WidenRow(b + (k0 + k) * g.b.stride + column, columns, 1.0f, panel + k * kPanel, kPanel);
      }
      continue;
    }
    WidenTransposed(b + column * g.b.stride + k0, g.b.stride, kc, columns, panel);
  }
}

// A's block where the micro-kernel can read it.
struct ABlock {
  const float* data;
  int64_t stride;
};

template <class T>
ABlock PackA(const Gemm& g, int64_t row, int64_t rows, int64_t depth, float* packed) {
  const int64_t k0 = depth * kDepth, kc = std::min(g.k - k0, kDepth);
  const T* a = static_cast<const T*>(g.a.data);
  if (g.a.transposed) {  // [k][row]
    for (int64_t k = 0; k < kc; ++k) {
      WidenRow(a + (k0 + k) * g.a.stride + row, rows, 1.0f, packed + k * kBlockRows,
               RoundUp(rows, kLanes));
    }
    return {packed, kBlockRows};
  }
  // float32 rows are read in place unless they lie a multiple of 1 KiB apart: few cache sets would
  // then serve all of them.
  if (std::is_same_v<T, float> && g.a.stride % 256 != 0) {
    return {reinterpret_cast<const float*>(a) + row * g.a.stride + k0, g.a.stride};
  }
  for (int64_t r = 0; r < rows; ++r) {
    WidenRow(a + (row + r) * g.a.stride + k0, kc, 1.0f, packed + r * kRowStride,
             RoundUp(kc, kLanes));
  }
  return {packed, kRowStride};
}

template <class T>
HWY_INLINE void FinishRow(const float* from, int64_t columns, bool accumulate, T* to) {
  const Floats d;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t n = std::min(kLanes, columns - c);
    Vector v = hn::LoadU(d, from + c);
    if (accumulate) v = hn::Add(v, n == kLanes ? LoadAsFloat(to + c) : LoadFirst(to + c, n));
    if (n == kLanes) {
      StoreFromFloat(v, to + c);
    } else {
      StoreFirst(v, to + c, n);
    }
  }
}

// Rows [row, row + rows) of panels [first, first + count) of a chunk.
template <class A, class C>
void MultiplyBlock(const Gemm& g, const Blocking& blocking, const float* packed,
                   int64_t chunk_first, int64_t first, int64_t count, int64_t row, int64_t rows) {
  // Panels that C cannot take as they are (16-bit, or ragged) gather in float32 first.
  constexpr bool kDirect = std::is_same_v<C, float>;
  const int64_t end_column = std::min(g.n, (chunk_first + first + count) * kPanel);
  const bool ragged = end_column % kLanes != 0;
  const int64_t gathered_panels = !kDirect ? count : ragged ? 1 : 0;
  const int64_t gathered_first = first + count - gathered_panels;
  const int64_t gathered_stride = gathered_panels * kPanel;

  Workspace memory(Workspace::BytesFor<float>(
                       std::max(kBlockRows * kRowStride, RoundUp(kBlockRows, kLanes) * kDepth)) +
                   Workspace::BytesFor<float>(rows * gathered_stride));
  float* a_packed =
      memory.Take<float>(std::max(kBlockRows * kRowStride, RoundUp(kBlockRows, kLanes) * kDepth));
  float* gathered = memory.Take<float>(rows * gathered_stride);

  for (int64_t depth = 0; depth < blocking.depths; ++depth) {
    const int64_t k0 = depth * kDepth, kc = std::min(g.k - k0, kDepth);
    const ABlock a = PackA<A>(g, row, rows, depth, a_packed);
    for (int64_t p = first; p < first + count; ++p) {
      if (Cancelled()) return;
      const int64_t column = (chunk_first + p) * kPanel;
      const int64_t columns = std::min(kPanel, g.n - column);
      const float* panel = packed + (p * g.k + k0) * kPanel;
      const bool gather = p >= gathered_first;
      float* c = gather ? gathered + (p - gathered_first) * kPanel
                        : static_cast<float*>(g.c.data) + row * g.c.stride + column;
      const int64_t stride = gather ? gathered_stride : g.c.stride;
      const bool store = depth == 0 && (gather || !g.accumulate);
      const auto multiply = [&](auto finish) HWY_ATTR {
        if (g.a.transposed) {
          MultiplyPanel<Order::kColumns>(rows, kc, a.data, a.stride, panel, columns, finish);
        } else {
          MultiplyPanel<Order::kRows>(rows, kc, a.data, a.stride, panel, columns, finish);
        }
      };
      if (store) {
        multiply(ScaleStore{c, stride, g.alpha});
      } else {
        multiply(ScaleAdd{c, stride, g.alpha});
      }
    }
  }
  for (int64_t r = 0; r < rows && gathered_panels > 0; ++r) {
    const int64_t column = (chunk_first + gathered_first) * kPanel;
    FinishRow(gathered + r * gathered_stride, end_column - column, g.accumulate,
              static_cast<C*>(g.c.data) + (row + r) * g.c.stride + column);
  }
}

// C of a product over nothing.
template <class C>
void Clear(const Gemm& g) {
  for (int64_t r = 0; r < g.m && !g.accumulate; ++r) {
    std::fill_n(static_cast<C*>(g.c.data) + r * g.c.stride, g.n, C(0.0f));
  }
}

template <class A, class B, class C>
Status MultiplyTyped(const Gemm& g) {
  if (g.m == 0 || g.n == 0) return {};
  if (g.k == 0) {
    Clear<C>(g);
    return {};
  }
  const Blocking blocking(g);
  const int64_t panels = NumPanels(g.n);
  Workspace memory(Workspace::BytesFor<float>(blocking.chunk_panels * kPanel * g.k));
  float* packed = memory.Take<float>(blocking.chunk_panels * kPanel * g.k);

  for (int64_t chunk = 0; chunk < panels; chunk += blocking.chunk_panels) {
    const int64_t count = std::min(blocking.chunk_panels, panels - chunk);
    const int64_t pieces = (count + kPanelsPerPiece - 1) / kPanelsPerPiece;
    Status status = ParallelFor(pieces * blocking.depths, [&](int64_t piece, int) HWY_ATTR {
      const int64_t first = piece % pieces * kPanelsPerPiece;
      PackB<B>(g, piece / pieces, chunk, first, std::min(kPanelsPerPiece, count - first), packed);
    });
    if (!status.ok()) return status;

    // Few rows: threads share them by columns. The cut changes no bit.
    const int64_t wanted = 4 * NumThreads();
    const int64_t row_blocks =
        std::max((g.m + kBlockRows - 1) / kBlockRows, std::min(wanted, g.m / (2 * kTileRows)));
    const int64_t groups = std::clamp<int64_t>(wanted / row_blocks, 1, count);
    status = ParallelFor(row_blocks * groups, [&](int64_t piece, int) HWY_ATTR {
      const int64_t block = piece / groups, group = piece % groups;
      const int64_t row = g.m * block / row_blocks, end = g.m * (block + 1) / row_blocks;
      const int64_t first = count * group / groups, last = count * (group + 1) / groups;
      MultiplyBlock<A, C>(g, blocking, packed, chunk, first, last - first, row, end - row);
    });
    if (!status.ok()) return status;
  }
  return {};
}

Status MultiplyAny(const Gemm& g) {
  return DispatchDType<float, bfloat16, half>(g.a.dtype, "a", [&]<class A>() {
    return DispatchDType<float, bfloat16, half>(g.b.dtype, "b", [&]<class B>() {
      return DispatchDType<float, bfloat16, half>(
          g.c.dtype, "c", [&]<class C>() { return MultiplyTyped<A, B, C>(g); });
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen {
namespace {
constexpr IsaTable<Status(const Gemm&)> kMultiply = VARLEN_ISA_TABLE(MultiplyAny);
}  // namespace

Status Multiply(const Gemm& gemm) { return kMultiply.Get()(gemm); }

}  // namespace varlen
#endif
