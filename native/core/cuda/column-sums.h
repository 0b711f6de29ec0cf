#pragma once

#include <cstdint>

#include "core/column-sums-device.h"
#include "core/cuda/launch.h"

namespace varlen::cuda {

// out[c] = sum over the rows of the term's column c: groups of rows, then their totals.
template <class Term>
void SumColumns(Launch& launch, const Term& term, int64_t num_rows, int64_t num_columns,
                float* out) {
  using Sums = DeviceColumnSums<Term>;
  const RowGroups groups(num_rows);
  auto* partials = launch.Scratch<float>(groups.count * num_columns);
  const typename Sums::Params sums{term, num_rows, num_columns, groups, partials};
  launch.Run<Sums>(Sums::BlocksFor(sums), sums);
  launch.Run<DeviceColumnTotals>(DeviceColumnTotals::BlocksFor(num_columns),
                                 {partials, groups.count, num_columns, out});
}

}  // namespace varlen::cuda
