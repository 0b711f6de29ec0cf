#pragma once

#include <cstdint>
#include <vector>

#include "ops/sparse-prefill/device-tables.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/sparse-prefill.h"

namespace varlen::sparse_prefill {

// Long tiles are cut into parts of this many keys, whose results are joined. Which are long depends
// on the head's pattern and lengths alone, and so do the bits of its rows.
inline constexpr int64_t kSplitKeys = 32768;

// Parts of the tables that are run one after the other, so that the memory of their slots is the
// next one's.
struct TableBatch {
  int64_t narrow_begin = 0, narrow_end = 0;  // tiles of up to 64 rows
  int64_t wide_begin = 0, wide_end = 0;      // tiles of up to 128 rows
  int64_t join_begin = 0, join_end = 0;
  int64_t slots = 0;
};

// The tables of a plan on the host. Heads with the same pattern share what their tiles name.
struct Tables {
  std::vector<DeviceTile> tiles;  // the narrow ones of every batch, then the wide ones
  std::vector<DeviceSegment> segments;
  std::vector<int32_t> columns;
  std::vector<uint32_t> masks;  // 2 words per mask of a narrow tile, 4 of a wide one
  std::vector<int32_t> rows, slots;
  std::vector<DeviceJoin> joins;
  std::vector<TableBatch> batches;
};

struct TableOptions {
  bool wide = true;  // are there kernels for 128 rows?
  int64_t split_keys = kSplitKeys;
  int64_t batch_slots = int64_t{1} << 20;  // a batch ends when it has as many
};

// Refuses what Head::Open does. `total_q`: rows of q, of which those past the last sequence get the
// results of rows without keys.
Status MakeTables(const PlanView& plan, const Lengths& lengths, int64_t total_q,
                  const TableOptions& options, Tables* tables);

}  // namespace varlen::sparse_prefill
