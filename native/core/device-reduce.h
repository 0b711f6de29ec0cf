#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/simt/simt.h"

// Small things that reductions of several kernels share.
namespace varlen {

template <class T>
SIMT_FN float LoadFloat(const T* pointer) {
  if constexpr (std::is_same_v<T, float>) {
    return simt::Load(pointer);
  } else {
    return simt::ToFloat<T>(simt::Load(pointer));
  }
}
template <class T>
SIMT_FN T NarrowFloat(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return simt::FromFloat<T>(value);
  }
}

SIMT_FN double ShuffleXorDouble(double value, int mask) {
  const auto bits = std::bit_cast<uint64_t>(value);
  const uint32_t low = simt::ShuffleXor(static_cast<uint32_t>(bits), mask);
  const uint32_t high = simt::ShuffleXor(static_cast<uint32_t>(bits >> 32), mask);
  return std::bit_cast<double>(uint64_t{high} << 32 | low);
}
SIMT_FN double ShuffleDouble(double value, int lane) {
  const auto bits = std::bit_cast<uint64_t>(value);
  const uint32_t low = simt::ShuffleIndex(static_cast<uint32_t>(bits), lane);
  const uint32_t high = simt::ShuffleIndex(static_cast<uint32_t>(bits >> 32), lane);
  return std::bit_cast<double>(uint64_t{high} << 32 | low);
}

// How a column of partial results is put together.
enum class Fold : uint8_t { kSum, kMin, kMax };

SIMT_FN double FoldIdentity(Fold fold) {
  const double infinity = simt::Infinity();
  return fold == Fold::kSum ? 0 : fold == Fold::kMin ? infinity : -infinity;
}
SIMT_FN double FoldTwo(Fold fold, double a, double b) {
  return fold == Fold::kSum ? a + b : fold == Fold::kMin ? (b < a ? b : a) : (b > a ? b : a);
}

// Over the 32 lanes, by a fixed tree: the same bits in every lane.
SIMT_FN double FoldLanes(Fold fold, double value) {
  for (int mask = simt::kWarpSize / 2; mask > 0; mask /= 2) {
    value = FoldTwo(fold, value, ShuffleXorDouble(value, mask));
  }
  return value;
}

// One column of `count` rows, `stride` doubles apart, in index order. Sixteen loads are under way
// at a time: the additions wait for one another, the loads need not.
SIMT_FN double FoldRows(Fold fold, const double* column, int64_t count, int64_t stride) {
  constexpr int kAhead = 16;
  double result = FoldIdentity(fold);
  int64_t i = 0;
  for (; i + kAhead <= count; i += kAhead) {
    double values[kAhead];
    SIMT_UNROLL
    for (int k = 0; k < kAhead; ++k) values[k] = simt::Load(column + (i + k) * stride);
    SIMT_UNROLL
    for (int k = 0; k < kAhead; ++k) result = FoldTwo(fold, result, values[k]);
  }
  for (; i < count; ++i) result = FoldTwo(fold, result, simt::Load(column + i * stride));
  return result;
}

// The same for a few that lie side by side: one per warp, in shared memory.
template <int kCount>
SIMT_FN double FoldFew(Fold fold, const double* values) {
  double result = FoldIdentity(fold);
  SIMT_UNROLL
  for (int i = 0; i < kCount; ++i) result = FoldTwo(fold, result, simt::Load(values + i));
  return result;
}

// One block: how many rows `bad(row)` holds for, and the first of them (infinity without one), into
// found [2]. `partial`: shared memory for 2 doubles per warp.
template <int kThreads, class Bad>
SIMT_FN void CountRowsWhere(int64_t num_rows, const Bad& bad, double* partial, double* found) {
  constexpr int kWarps = kThreads / simt::kWarpSize;
  double count = 0, first = FoldIdentity(Fold::kMin);
  for (int64_t row = simt::ThreadIndex(); row < num_rows; row += kThreads) {
    if (!bad(row)) continue;
    if (count == 0) first = static_cast<double>(row);
    ++count;
  }
  count = FoldLanes(Fold::kSum, count);
  first = FoldLanes(Fold::kMin, first);
  if (simt::LaneIndex() == 0) {
    simt::Store(partial + simt::WarpIndex(), count);
    simt::Store(partial + kWarps + simt::WarpIndex(), first);
  }
  simt::SyncThreads();
  if (simt::ThreadIndex() != 0) return;
  simt::Store(found, FoldFew<kWarps>(Fold::kSum, partial));
  simt::Store(found + 1, FoldFew<kWarps>(Fold::kMin, partial + kWarps));
}

}  // namespace varlen
