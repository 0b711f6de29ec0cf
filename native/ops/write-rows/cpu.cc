// Copies of bytes, which no instruction set does better than memcpy. Each thread owns a stretch of
// the target and looks at all tokens, so that a row written twice has its last value for any number
// of threads.
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/parallel.h"
#include "ops/write-rows/write-rows.h"

namespace varlen::write_rows {
namespace {
// Stretches are as few as that fills all threads: each costs a look at every token.
constexpr int64_t kMaxPieces = 16;
// Below that a second thread costs more than it saves.
constexpr int64_t kMinPieceBytes = 1 << 18;
}  // namespace

Status RunCpu(const Forward& params) {
  const Tensor& matrix = params.target[0];
  const int64_t num_rows = matrix.shape[0], tokens = params.rows.size();
  if (tokens == 0 || matrix.shape[1] == 0) return {};
  const int64_t bytes = matrix.shape[1] * SizeOf(matrix.dtype);
  const auto start = [](const Tensor& tensor) {
    return tensor.storage->data() + tensor.offset * SizeOf(tensor.dtype);
  };
  std::byte* to = start(matrix);
  const std::byte* from = start(params.values);
  const int32_t* rows = params.rows.data();
  const int64_t pieces =
      std::clamp<int64_t>(tokens * bytes / kMinPieceBytes, 1, std::min(kMaxPieces, num_rows));
  const int64_t per_piece = (num_rows + pieces - 1) / pieces;
  return ParallelForRange(num_rows, per_piece, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      if (rows[t] < begin || rows[t] >= end) continue;
      std::memcpy(to + rows[t] * bytes, from + t * bytes, static_cast<size_t>(bytes));
    }
  });
}

}  // namespace varlen::write_rows
