// Sums over the rows of a matrix in an order that depends on its shape alone: rows are cut into a
// fixed number of blocks, whose partial sums are then added one after the other. Included once per
// target.
#if defined(VARLEN_CORE_COLUMN_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_COLUMN_SUMS_INL_H_
#undef VARLEN_CORE_COLUMN_SUMS_INL_H_
#else
#define VARLEN_CORE_COLUMN_SUMS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "core/elementwise-inl.h"
#include "core/parallel.h"
#include "core/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// sums[c] = sum over the rows of what `add_rows(begin, end, partial)` adds to partial[c] for the
// rows [begin, end). Blocks have at least 32 rows and there are at most 64 of them: enough for the
// threads, and few partial sums to keep.
template <class AddRows>
Status SumColumns(int64_t rows, int64_t columns, float* sums, const AddRows& add_rows) {
  const int64_t block = std::max<int64_t>(32, (rows + 63) / 64);
  const int64_t blocks = (rows + block - 1) / block;
  Workspace memory(Workspace::BytesFor<float>(blocks * columns));
  float* partials = memory.Take<float>(blocks * columns);
  Status status = ParallelForRange(rows, block, [&](int64_t begin, int64_t end) {
    float* partial = partials + begin / block * columns;
    std::fill_n(partial, columns, 0.0f);
    add_rows(begin, end, partial);
  });
  if (!status.ok()) return status;
  std::fill_n(sums, columns, 0.0f);
  for (int64_t b = 0; b < blocks; ++b) AddRow(partials + b * columns, columns, sums);
  return {};
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_COLUMN_SUMS_INL_H_
