#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/simt/simt.h"

// Several tensors as one list of pieces of equal size, whatever tensor they lie in, for kernels:
// core/pieces.h for a GPU.
namespace varlen {

struct DevicePiece {
  int64_t tensor, begin, end;  // elements of the tensor
};

struct DevicePieces {
  static constexpr int64_t kSize = 4096;  // elements

  const int64_t* first;  // [num_tensors], the first piece of each
  const int64_t* sizes;  // [num_tensors], elements
  int64_t num_tensors, count;

  // The last tensor whose first piece is at or before `piece`; empty ones share theirs with the
  // next.
  SIMT_FN DevicePiece At(int64_t piece) const {
    int64_t low = 0, high = num_tensors;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (simt::Load(first + middle) <= piece ? low : high) = middle;
    }
    const int64_t begin = (piece - simt::Load(first + low)) * kSize;
    const int64_t size = simt::Load(sizes + low), end = begin + kSize;
    return {low, begin, end < size ? end : size};
  }
};

// What a launch uploads for them.
struct PieceTable {
  std::vector<int64_t> first, sizes;
  int64_t count = 0;

  explicit PieceTable(const std::vector<int64_t>& elements) : sizes(elements) {
    for (int64_t size : elements) {
      first.push_back(count);
      count += (size + DevicePieces::kSize - 1) / DevicePieces::kSize;
    }
  }
};

}  // namespace varlen
