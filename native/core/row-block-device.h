#pragma once

#include <cstdint>

#include "core/chunks-device.h"
#include "core/device-reduce.h"
#include "core/simt/simt.h"

namespace varlen {

// Ascends with z; 0 and -0 are one.
SIMT_FN uint32_t OrderKey(float z) {
  const uint32_t bits = simt::FloatToBits(z + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// A place in the order of a row's words: larger logits first, the lower index first among equals.
// It keeps what is at or before it.
struct OrderCut {
  uint32_t key = 0;
  int64_t word = 0;

  SIMT_FN bool Keeps(uint32_t other, int64_t i) const {
    return other > key || (other == key && i <= word);
  }
};

// A block of 256 threads that works on one row at a time: sums and the like over the row or over a
// value per thread, in float64 by a fixed tree and with the same bits in every thread. All threads
// call each function together.
class RowBlock {
 public:
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 2 * kWarps * sizeof(double);

  SIMT_FN explicit RowBlock(unsigned char* shared) : partial_(reinterpret_cast<double*>(shared)) {}

  // --- of a value per thread ---

  SIMT_FN double Reduce(Fold fold, double value) {
    value = FoldLanes(fold, value);
    double* values = NextPartial();
    if (simt::LaneIndex() == 0) simt::Store(values + simt::WarpIndex(), value);
    simt::SyncThreads();
    return FoldFew<kWarps>(fold, values);
  }
  // Over the threads before this one; the block's sum in `all`.
  SIMT_FN double SumBefore(double value, double* all) {
    double inclusive = value;
    SIMT_UNROLL
    for (int delta = 1; delta < simt::kWarpSize; delta *= 2) {
      const int lane = simt::LaneIndex();
      const double other = ShuffleDouble(inclusive, lane < delta ? lane : lane - delta);
      if (lane >= delta) inclusive += other;
    }
    double* sums = NextPartial();
    if (simt::LaneIndex() == simt::kWarpSize - 1) simt::Store(sums + simt::WarpIndex(), inclusive);
    simt::SyncThreads();
    double before = 0, sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      if (warp == simt::WarpIndex()) before = sum;
      sum += simt::Load(sums + warp);
    }
    *all = sum;
    return before + (inclusive - value);
  }

  // --- of a row of `size` elements ---

  template <class T>
  struct Row {
    const T* data;
    int64_t size;
    bool vector_access;  // it begins at a multiple of 16 bytes
  };

  // body(i, element) for this thread's elements.
  template <class T, class Body>
  static SIMT_FN void ForEach(const Row<T>& row, const Body& body) {
    for (int64_t first = int64_t{simt::ThreadIndex()} * internal::kChunk; first < row.size;
         first += int64_t{kThreads} * internal::kChunk) {
      const int count = internal::ChunkLength(first, row.size);
      float z[internal::kChunk];
      internal::LoadChunk(row.data, first, count, row.vector_access, z);
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        if (i < count) body(first + i, z[i]);
      }
    }
  }
  template <class T, class Value>
  SIMT_FN double Sum(const Row<T>& row, const Value& value) {
    double sum = 0;
    ForEach(row, [&](int64_t i, float z) { sum += value(i, z); });
    return Reduce(Fold::kSum, sum);
  }
  template <class T, class Value>
  SIMT_FN double Max(const Row<T>& row, const Value& value) {
    double largest = -simt::Infinity();
    ForEach(row, [&](int64_t i, float z) {
      const double one = value(i, z);
      largest = one > largest ? one : largest;
    });
    return Reduce(Fold::kMax, largest);
  }

  // The first place such that the values of all words at or before it add up to `enough`; keeps
  // all where even those do not. Found bit by bit, each bit by one pass over the row, which the
  // cache serves: nothing is sorted. value(key, i, element) is never negative; z(element) is the
  // number that orders.
  template <class T, class Order, class Value>
  SIMT_FN OrderCut FindCut(const Row<T>& row, double enough, const Order& order,
                           const Value& value) {
    OrderCut cut;
    for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
      const uint32_t tried = cut.key | bit;
      const double sum = Sum(row, [&](int64_t i, float element) {
        const uint32_t key = OrderKey(order(element));
        return key >= tried ? value(key, i, element) : 0.0;
      });
      if (sum >= enough) cut.key = tried;
    }
    // Equal words in the order of their indices: the largest number of them that is too small.
    int64_t short_of = 0, bit = 1;
    while (bit < row.size) bit *= 2;
    for (; bit != 0; bit /= 2) {
      const int64_t tried = short_of + bit;
      const double sum = Sum(row, [&](int64_t i, float element) {
        const uint32_t key = OrderKey(order(element));
        return key > cut.key || (key == cut.key && i < tried) ? value(key, i, element) : 0.0;
      });
      if (sum < enough) short_of = tried;
    }
    cut.word = short_of;
    return cut;
  }

 private:
  // Two halves take turns: whoever writes one has passed the barrier after the last read of it.
  SIMT_FN double* NextPartial() {
    turn_ = 1 - turn_;
    return partial_ + turn_ * kWarps;
  }

  double* const partial_;
  int turn_ = 0;
};

}  // namespace varlen
