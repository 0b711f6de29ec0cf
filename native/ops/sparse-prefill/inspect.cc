#include <cstring>
#include <string>

#include "core/parallel.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// What a plan computes, without computing it.
namespace varlen::sparse_prefill {
namespace {

// Tiles of a head that are counted; above, every n-th stands for its neighbours.
constexpr int64_t kCountedTiles = 512;

Status OpenOne(const Tensor& plan, int64_t sequence, int64_t head, PlanView* view, Head* tiles) {
  Status status = PlanView::Open(plan, view);
  if (!status.ok()) return status;
  if (sequence < 0 || sequence >= view->num_seqs()) {
    return Invalid(Code::kRange, "sequence", "is out of range", std::to_string(sequence),
                   "0.." + std::to_string(view->num_seqs() - 1));
  }
  if (head < 0 || head >= view->num_heads()) {
    return Invalid(Code::kRange, "head", "is out of range", std::to_string(head),
                   "0.." + std::to_string(view->num_heads() - 1));
  }
  return tiles->Open(*view, sequence, head);
}

// Every (row, key) pair that causality allows.
double CausalPairs(const SequenceInfo& s) {
  const double q = static_cast<double>(s.q_length), k = static_cast<double>(s.k_length);
  return s.causal ? q * (k - q) + q * (q + 1) / 2 : q * k;
}

// Pairs that whole tiles of 16 rows issue for one key.
int IssuedRows(RowBits rows) {
  int issued = 0;
  for (int panel = 0; panel < kTileRows; panel += 16) issued += (rows >> panel & 0xffff) != 0;
  return 16 * issued;
}

}  // namespace

void CountHead(const Head& head, int64_t max_tiles, double* counts) {
  const auto& tiles = head.tiles();
  const auto num_tiles = static_cast<int64_t>(tiles.size());
  const int64_t step = std::max<int64_t>(1, num_tiles / max_tiles + (num_tiles % max_tiles != 0));
  const int64_t columns = head.sequence().k_length;
  Workspace memory(ColumnSet::BytesFor(columns));
  ColumnSet set(memory, columns);
  double rows_counted = 0, rows_all = 0;
  double lines = 0, computed = 0, issued = 0, keys = 0;
  for (int64_t t = 0; t < static_cast<int64_t>(tiles.size()); ++t) {
    const Tile& tile = tiles[static_cast<size_t>(t)];
    rows_all += tile.count;
    if ((t + step / 2) % step != 0) continue;
    rows_counted += tile.count;
    head.ForColumns(tile, true, set, [&](int64_t, RowBits rows) { lines += std::popcount(rows); });
    head.ForColumns(tile, false, set, [&](int64_t, RowBits rows) {
      computed += std::popcount(rows);
      issued += IssuedRows(rows);
      keys += 1;
    });
  }
  const double scale = rows_counted > 0 ? rows_all / rows_counted : 1;
  counts[0] = lines * scale;
  counts[1] = computed * scale;
  counts[2] = issued * scale;
  counts[3] = CausalPairs(head.sequence());
  counts[4] = static_cast<double>(tiles.size());
  counts[5] = step > 1 ? keys * scale : keys;
}

Status Run(const Count& params) {
  PlanView view;
  Status status = PlanView::Open(params.plan, &view);
  if (!status.ok()) return status;
  const int64_t problems = view.num_seqs() * view.num_heads();
  if (params.counts.size() != problems * kCountWords) {
    return Invalid(Code::kShape, "counts", "does not fit the plan",
                   std::to_string(params.counts.size()), std::to_string(problems * kCountWords));
  }
  std::vector<Status> failed(static_cast<size_t>(problems));
  status = ParallelFor(problems, [&](int64_t i, int) {
    Head head;
    failed[static_cast<size_t>(i)] = head.Open(view, i / view.num_heads(), i % view.num_heads());
    if (failed[static_cast<size_t>(i)].ok()) {
      CountHead(head, kCountedTiles, params.counts.data<double>() + i * kCountWords);
    }
  });
  for (Status& failure : failed) {
    if (status.ok() && !failure.ok()) status = std::move(failure);
  }
  return status;
}

Status Run(const Mask& params) {
  PlanView view;
  Head head;
  Status status = OpenOne(params.plan, params.sequence, params.head, &view, &head);
  if (!status.ok()) return status;
  const int64_t rows = head.sequence().q_length, columns = head.sequence().k_length;
  if (params.mask.shape[0] != rows || params.mask.shape[1] != columns) {
    return Invalid(
        Code::kShape, "mask", "does not fit the sequence",
        std::to_string(params.mask.shape[0]) + " x " + std::to_string(params.mask.shape[1]),
        std::to_string(rows) + " x " + std::to_string(columns));
  }
  auto* mask = params.mask.data<uint8_t>();
  std::memset(mask, 0, static_cast<size_t>(rows * columns));
  Workspace memory(ColumnSet::BytesFor(columns));
  ColumnSet set(memory, columns);
  for (const Tile& tile : head.tiles()) {
    int32_t row[kTileRows];
    head.RowsOf(tile, row);
    head.ForColumns(tile, params.lines, set, [&](int64_t j, RowBits kept) {
      for (; kept != 0; kept &= kept - 1) ++mask[row[std::countr_zero(kept)] * columns + j];
    });
  }
  return {};
}

Status Run(const Indices& params) {
  PlanView view;
  Head head;
  Status status = OpenOne(params.plan, params.sequence, params.head, &view, &head);
  if (!status.ok()) return status;
  const auto short_of = [](const char* name, int64_t got, int64_t needed) {
    return Invalid(Code::kShape, name, "is too small", std::to_string(got), std::to_string(needed));
  };
  const auto num_tiles = static_cast<int64_t>(head.tiles().size());
  if (params.tile_rows.size() != num_tiles + 1) {
    return short_of("tileRows", params.tile_rows.size(), num_tiles + 1);
  }
  const int64_t columns = head.sequence().k_length;
  Workspace memory(ColumnSet::BytesFor(columns));
  ColumnSet set(memory, columns);
  int64_t num_rows = 0, num_columns = 0;
  for (int64_t t = 0; t < num_tiles; ++t) {
    const Tile& tile = head.tiles()[static_cast<size_t>(t)];
    params.tile_rows.data<int32_t>()[t] = static_cast<int32_t>(num_rows);
    params.tile_columns.data<int32_t>()[t] = static_cast<int32_t>(num_columns);
    if (num_rows + tile.count > params.rows.size()) {
      return short_of("rows", params.rows.size(), num_rows + tile.count);
    }
    head.RowsOf(tile, params.rows.data<int32_t>() + num_rows);
    num_rows += tile.count;
    head.ForColumns(tile, false, set, [&](int64_t j, RowBits kept) {
      if (num_columns < params.columns.size() && 2 * num_columns + 1 < params.row_bits.size()) {
        params.columns.data<int32_t>()[num_columns] = static_cast<int32_t>(j);
        std::memcpy(params.row_bits.data<int32_t>() + 2 * num_columns, &kept, sizeof(kept));
      }
      ++num_columns;
    });
  }
  params.tile_rows.data<int32_t>()[num_tiles] = static_cast<int32_t>(num_rows);
  params.tile_columns.data<int32_t>()[num_tiles] = static_cast<int32_t>(num_columns);
  if (num_columns != params.columns.size()) {
    return short_of("columns", params.columns.size(), num_columns);
  }
  return {};
}

}  // namespace varlen::sparse_prefill
