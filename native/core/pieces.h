#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace varlen {

// A list of tensors cut into pieces of at most kSize elements, none across two tensors. The cut
// depends on the sizes alone.
class Pieces {
 public:
  static constexpr int64_t kSize = 16384;

  struct Piece {
    size_t tensor;
    int64_t begin, end;  // elements
  };

  explicit Pieces(const std::vector<Tensor>& tensors) {
    first_.reserve(tensors.size() + 1);
    sizes_.reserve(tensors.size());
    for (const Tensor& tensor : tensors) {
      first_.push_back(count_);
      sizes_.push_back(tensor.size());
      count_ += (tensor.size() + kSize - 1) / kSize;
    }
  }

  int64_t count() const { return count_; }

  Piece At(int64_t piece) const {
    const auto after = std::upper_bound(first_.begin(), first_.end(), piece);
    const auto tensor = static_cast<size_t>(after - first_.begin()) - 1;
    const int64_t begin = (piece - first_[tensor]) * kSize;
    return {tensor, begin, std::min(sizes_[tensor], begin + kSize)};
  }

 private:
  std::vector<int64_t> first_;  // piece
  std::vector<int64_t> sizes_;  // elements
  int64_t count_ = 0;
};

}  // namespace varlen
