#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda/launch.h"
#include "core/device-pieces.h"
#include "core/tensor.h"

namespace varlen::cuda {

// The table of pieces for kernels over several tensors.
inline DevicePieces UploadPieces(Launch& launch, const std::vector<Tensor>& tensors) {
  std::vector<int64_t> sizes;
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.size());
  const PieceTable table(sizes);
  const auto count = static_cast<int64_t>(sizes.size());
  return {launch.Upload(table.first.data(), count), launch.Upload(table.sizes.data(), count), count,
          table.count};
}

}  // namespace varlen::cuda
