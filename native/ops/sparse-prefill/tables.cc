#include "ops/sparse-prefill/tables.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "core/parallel.h"
#include "core/workspace.h"

namespace varlen::sparse_prefill {
namespace {

// As many keys in a regular row are worth a segment; fewer go into the tile's list.
constexpr int64_t kMinSegment = 8;
// Work items that one piece of parallel work makes.
constexpr int64_t kPieceItems = 16;
// Keys of a sequence: the number of a key's mask, doubled, is an int32.
constexpr int64_t kMostKeys = int64_t{1} << 30;

// One tile of head.h, or two that are computed together.
struct Item {
  Tile first, second;  // second of no rows: none
  bool wide() const { return second.count > 0; }
};

// Keys j .. j + count - 1, which the same rows keep.
struct KeyRun {
  int64_t j, count;
  RowBits first, second;
  bool SameRows(const KeyRun& other) const {
    return first == other.first && second == other.second;
  }
};

// Makes the tables of some items; offsets count from its own arrays.
class ItemTables {
 public:
  ItemTables(const Head& head, Tables* to) : head_(head), to_(*to) {}

  void Add(const Item& item, ColumnSet& first, ColumnSet& second) {
    DeviceTile tile{};
    tile.segments = Size(to_.segments);
    tile.columns = Size(to_.columns);
    tile.masks = Size(to_.masks);
    tile.rows = tile.slots = -1;
    tile.num_rows = item.first.count + item.second.count;
    Rows(item, &tile);
    words_ = item.wide() ? 4 : 2;
    tile_ = tile;

    whole_.clear();
    some_.clear();
    const RowBits all_first = FirstRows(item.first.count);
    const RowBits all_second = FirstRows(item.second.count);
    head_.ForRunsOfPair(item.first, item.second, first, second,
                        [&](int64_t j, int64_t count, RowBits a, RowBits b) {
                          const KeyRun run{j, count, a, b};
                          auto& runs = a == all_first && b == all_second ? whole_ : some_;
                          if (!runs.empty() && runs.back().j + runs.back().count == j &&
                              runs.back().SameRows(run)) {
                            runs.back().count += count;
                          } else {
                            runs.push_back(run);
                          }
                        });
    keys_ = 0;
    Segments(whole_, false);
    tile.whole_keys = static_cast<int32_t>(keys_);
    Segments(some_, true);
    tile.end_key = static_cast<int32_t>(keys_);
    to_.tiles.push_back(tile);
  }

 private:
  template <class T>
  static int64_t Size(const std::vector<T>& array) {
    return static_cast<int64_t>(array.size());
  }

  void Rows(const Item& item, DeviceTile* tile) {
    if (!item.first.listed) {
      tile->first_row = static_cast<int32_t>(item.first.begin);
      return;
    }
    tile->rows = Size(to_.rows);
    int32_t rows[kTileRows];
    for (const Tile& part : {item.first, item.second}) {
      head_.RowsOf(part, rows);
      to_.rows.insert(to_.rows.end(), rows, rows + part.count);
    }
  }

  // Regular rows of keys become segments, the rest one list.
  void Segments(const std::vector<KeyRun>& runs, bool masked) {
    listed_.clear();
    for (size_t i = 0; i < runs.size();) {
      const KeyRun& run = runs[i];
      const size_t series = SeriesFrom(runs, i);
      if (run.count >= kMinSegment) {
        Segment(run.j, 1, run.count, masked ? 2 * AddMask(run) : -1);
        ++i;
      } else if (series >= kMinSegment) {
        const int64_t stride = runs[i + 1].j - run.j;
        Segment(run.j, stride, static_cast<int64_t>(series),
                masked ? AddMasks(runs, i, series) : -1);
        i += series;
      } else {
        listed_.push_back(run);
        ++i;
      }
    }
    if (listed_.empty()) return;
    const int64_t first = Size(to_.columns) - tile_.columns;
    const int32_t mask = masked ? 2 * NextMask() + 1 : -1;
    int64_t count = 0;
    for (const KeyRun& run : listed_) {
      for (int64_t n = 0; n < run.count; ++n, ++count) {
        to_.columns.push_back(static_cast<int32_t>(run.j + n));
        if (masked) AddMask(run);
      }
    }
    Segment(first, 0, count, mask);
  }

  // How many single keys from run i on are equally far apart.
  static size_t SeriesFrom(const std::vector<KeyRun>& runs, size_t i) {
    size_t n = i + 1;
    if (runs[i].count != 1 || n == runs.size()) return 1;
    const int64_t stride = runs[n].j - runs[i].j;
    while (n < runs.size() && runs[n].count == 1 && runs[n].j - runs[n - 1].j == stride) ++n;
    return n - i;
  }

  void Segment(int64_t first, int64_t stride, int64_t count, int32_t mask) {
    keys_ += count;
    to_.segments.push_back({static_cast<int32_t>(keys_), static_cast<int32_t>(first),
                            static_cast<int32_t>(stride), mask});
  }

  int32_t NextMask() const {
    return static_cast<int32_t>((Size(to_.masks) - tile_.masks) / words_);
  }
  int32_t AddMask(const KeyRun& run) {
    const int32_t number = NextMask();
    for (const RowBits rows : {run.first, run.second}) {
      to_.masks.push_back(static_cast<uint32_t>(rows));
      to_.masks.push_back(static_cast<uint32_t>(rows >> 32));
      if (words_ == 2) break;
    }
    return number;
  }
  int32_t AddMasks(const std::vector<KeyRun>& runs, size_t begin, size_t count) {
    const int32_t first = NextMask();
    for (size_t i = begin; i < begin + count; ++i) AddMask(runs[i]);
    return 2 * first + 1;
  }

  const Head& head_;
  Tables& to_;
  DeviceTile tile_{};
  int words_ = 2;
  int64_t keys_ = 0;
  std::vector<KeyRun> whole_, some_, listed_;
};

// What heads of a sequence with the same pattern share.
struct Shape {
  int64_t sequence = 0;
  Head head;
  std::vector<Item> items;
  std::vector<DeviceTile> tiles;  // of one head, parts of split tiles among them
  std::vector<bool> wide;         // per tile
  std::vector<DeviceJoin> joins;  // rows of the sequence, slots of one head
  int64_t slots = 0;
};

struct Piece {
  const Shape* shape = nullptr;
  size_t begin = 0, end = 0;  // items
  Tables tables;
};

void FindItems(Shape* shape, bool wide) {
  const std::vector<Tile>& tiles = shape->head.tiles();
  for (size_t t = 0; t < tiles.size(); ++t) {
    Item item{tiles[t], {}};
    if (wide && t + 1 < tiles.size() && shape->head.ShareKeys(tiles[t], tiles[t + 1])) {
      item.second = tiles[++t];
    }
    shape->items.push_back(item);
  }
}

// Appends a piece's arrays and, to its shape, its tiles.
void Append(Piece& piece, const std::vector<Item>& items, Shape* shape, Tables* to) {
  const auto append = [](auto& all, auto& some) {
    const auto begin = static_cast<int64_t>(all.size());
    all.insert(all.end(), some.begin(), some.end());
    some = {};
    return begin;
  };
  const int64_t segments = append(to->segments, piece.tables.segments);
  const int64_t columns = append(to->columns, piece.tables.columns);
  const int64_t masks = append(to->masks, piece.tables.masks);
  const int64_t rows = append(to->rows, piece.tables.rows);
  for (size_t i = 0; i < piece.tables.tiles.size(); ++i) {
    DeviceTile tile = piece.tables.tiles[i];
    tile.segments += segments;
    tile.columns += columns;
    tile.masks += masks;
    if (tile.rows >= 0) tile.rows += rows;
    shape->tiles.push_back(tile);
    shape->wide.push_back(items[piece.begin + i].wide());
  }
  piece.tables.tiles = {};
}

// How tiles of one head are cut. A tile that costs what its neighbours cost fills the GPU together
// with them, and whole it needs no memory for parts; one of few, or far longer than most, does not.
class Cuts {
 public:
  Cuts(const std::vector<DeviceTile>& tiles, int64_t split_keys)
      : split_keys_(split_keys), longest_(split_keys) {
    int64_t keys = 0;
    for (const DeviceTile& tile : tiles) keys += tile.end_key;
    const auto count = static_cast<int64_t>(tiles.size());
    if (count >= kFewTiles) longest_ = std::max(longest_, 4 * keys / count);
  }
  int64_t PartsOf(const DeviceTile& tile) const {
    return tile.end_key <= longest_ ? 1 : (tile.end_key + split_keys_ - 1) / split_keys_;
  }

 private:
  static constexpr int64_t kFewTiles = 64;
  const int64_t split_keys_;
  int64_t longest_;  // keys of a tile that stays whole
};

// Cuts tiles with many keys, and gives slots to the rows that stand in several tiles.
void CutKeys(const TableOptions& options, Shape* shape, Tables* to) {
  const auto rows = static_cast<size_t>(shape->head.sequence().q_length);
  const auto row_of = [&](const DeviceTile& tile, int32_t r) {
    return static_cast<size_t>(tile.rows < 0 ? tile.first_row + r
                                             : to->rows[static_cast<size_t>(tile.rows + r)]);
  };
  const Cuts cuts(shape->tiles, options.split_keys);
  std::vector<int32_t> parts(rows, 0);
  bool any = false;
  for (const DeviceTile& tile : shape->tiles) {
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      parts[row_of(tile, r)] += static_cast<int32_t>(cuts.PartsOf(tile));
      any = any || parts[row_of(tile, r)] > 1;
    }
  }
  if (!any) return;
  std::vector<int32_t> next(rows, -1);
  for (size_t row = 0; row < rows; ++row) {
    if (parts[row] <= 1) continue;
    next[row] = static_cast<int32_t>(shape->slots);
    shape->joins.push_back({static_cast<int32_t>(row), 0, next[row], parts[row]});
    shape->slots += parts[row];
  }
  std::vector<DeviceTile> tiles;
  std::vector<bool> wide;
  for (size_t t = 0; t < shape->tiles.size(); ++t) {
    DeviceTile tile = shape->tiles[t];
    const int64_t count = cuts.PartsOf(tile);
    const auto slots = static_cast<int64_t>(to->slots.size());
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      int32_t& slot = next[row_of(tile, r)];
      to->slots.push_back(slot);
      if (slot < 0) continue;
      tile.slots = slots;
      slot += static_cast<int32_t>(count);
    }
    if (tile.slots < 0) to->slots.resize(static_cast<size_t>(slots));
    const int64_t keys = tile.end_key;
    for (int64_t part = 0; part < count; ++part) {
      tile.first_slot = static_cast<int32_t>(part);
      tile.first_key = static_cast<int32_t>(part * options.split_keys);
      tile.end_key = static_cast<int32_t>(std::min(keys, (part + 1) * options.split_keys));
      tiles.push_back(tile);
      wide.push_back(shape->wide[t]);
    }
  }
  shape->tiles = std::move(tiles);
  shape->wide = std::move(wide);
}

// The tiles of every head in their order of launches.
class Batches {
 public:
  Batches(const TableOptions& options, Tables* to) : options_(options), to_(*to) {}

  void AddHead(const Shape& shape, int64_t head, int64_t q_begin, int64_t k_begin) {
    const auto first_slot = static_cast<int32_t>(batch_.slots);
    for (size_t t = 0; t < shape.tiles.size(); ++t) {
      DeviceTile tile = shape.tiles[t];
      tile.head = static_cast<int32_t>(head);
      tile.q_begin = static_cast<int32_t>(q_begin);
      tile.k_begin = static_cast<int32_t>(k_begin);
      tile.first_slot += first_slot;
      (shape.wide[t] ? wide_ : narrow_).push_back(tile);
    }
    for (DeviceJoin join : shape.joins) {
      join.row += static_cast<int32_t>(q_begin);
      join.head = static_cast<int32_t>(head);
      join.first_slot += first_slot;
      to_.joins.push_back(join);
    }
    batch_.slots += shape.slots;
    if (batch_.slots >= options_.batch_slots) Close();
  }
  // Rows that no sequence owns.
  void AddRows(int64_t begin, int64_t end, int64_t num_heads) {
    for (int64_t head = 0; head < num_heads; ++head) {
      for (int64_t row = begin; row < end; row += kTileRows) {
        DeviceTile tile{};
        tile.rows = tile.slots = -1;
        tile.first_row = static_cast<int32_t>(row);
        tile.num_rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, end - row));
        tile.head = static_cast<int32_t>(head);
        narrow_.push_back(tile);
      }
    }
  }
  void Finish() {
    Close();
    const auto narrow = static_cast<int64_t>(to_.tiles.size());
    to_.tiles.insert(to_.tiles.end(), wide_tiles_.begin(), wide_tiles_.end());
    for (TableBatch& batch : to_.batches) {
      batch.wide_begin += narrow;
      batch.wide_end += narrow;
    }
  }

 private:
  // The dearest tiles first, so that no multiprocessor is left with a long one at the end.
  static int64_t Place(std::vector<DeviceTile>& tiles, std::vector<DeviceTile>& all) {
    std::stable_sort(tiles.begin(), tiles.end(), [](const DeviceTile& a, const DeviceTile& b) {
      return a.end_key - a.first_key > b.end_key - b.first_key;
    });
    const auto begin = static_cast<int64_t>(all.size());
    all.insert(all.end(), tiles.begin(), tiles.end());
    tiles.clear();
    return begin;
  }
  void Close() {
    if (narrow_.empty() && wide_.empty()) return;
    batch_.narrow_begin = Place(narrow_, to_.tiles);
    batch_.narrow_end = static_cast<int64_t>(to_.tiles.size());
    batch_.wide_begin = Place(wide_, wide_tiles_);
    batch_.wide_end = static_cast<int64_t>(wide_tiles_.size());
    batch_.join_end = static_cast<int64_t>(to_.joins.size());
    to_.batches.push_back(batch_);
    batch_ = {};
    batch_.join_begin = static_cast<int64_t>(to_.joins.size());
  }

  const TableOptions& options_;
  Tables& to_;
  TableBatch batch_;
  std::vector<DeviceTile> narrow_, wide_, wide_tiles_;
};

}  // namespace

Status MakeTables(const PlanView& plan, const Lengths& lengths, int64_t total_q,
                  const TableOptions& options, Tables* tables) {
  const int64_t num_seqs = plan.num_seqs(), num_heads = plan.num_heads();
  std::vector<std::unique_ptr<Shape>> shapes;
  std::vector<Shape*> shape_of;  // per (sequence, head)
  std::map<std::pair<int64_t, std::vector<int32_t>>, Shape*> known;
  for (int64_t b = 0; b < num_seqs; ++b) {
    if (plan.sequence(b).k_length > kMostKeys) {
      return Invalid(Code::kOverflow, "plan",
                     "has more keys in a sequence than a GPU's tables hold",
                     std::to_string(plan.sequence(b).k_length), "<= 2^30");
    }
    for (int64_t h = 0; h < num_heads; ++h) {
      auto shape = std::make_unique<Shape>();
      shape->sequence = b;
      if (Status status = shape->head.Open(plan, b, h); !status.ok()) return status;
      // What the words say was checked: they lie inside the plan.
      const int32_t* words = plan.words() + plan.head_words(b, h).plan;
      Shape*& same = known[{b, std::vector<int32_t>(words, words + words[1])}];
      if (same == nullptr) {
        same = shape.get();
        FindItems(same, options.wide);
        shapes.push_back(std::move(shape));
      }
      shape_of.push_back(same);
    }
  }

  std::vector<Piece> pieces;
  for (const auto& shape : shapes) {
    for (size_t begin = 0; begin < shape->items.size(); begin += kPieceItems) {
      Piece piece;
      piece.shape = shape.get();
      piece.begin = begin;
      piece.end = std::min(shape->items.size(), begin + kPieceItems);
      pieces.push_back(std::move(piece));
    }
  }
  Status status = ParallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    if (Cancelled()) return;
    Piece& piece = pieces[static_cast<size_t>(i)];
    const int64_t columns = piece.shape->head.sequence().k_length;
    Workspace memory(2 * ColumnSet::BytesFor(columns));
    ColumnSet first(memory, columns), second(memory, columns);
    ItemTables items(piece.shape->head, &piece.tables);
    for (size_t n = piece.begin; n < piece.end; ++n) {
      items.Add(piece.shape->items[n], first, second);
    }
  });
  if (!status.ok()) return status;

  size_t next = 0;
  for (const auto& shape : shapes) {
    for (; next < pieces.size() && pieces[next].shape == shape.get(); ++next) {
      Append(pieces[next], shape->items, shape.get(), tables);
    }
    CutKeys(options, shape.get(), tables);
  }
  Batches batches(options, tables);
  for (int64_t i = 0; i < num_seqs * num_heads; ++i) {
    const int64_t b = i / num_heads;
    batches.AddHead(*shape_of[static_cast<size_t>(i)], i % num_heads,
                    lengths.cu_seqlens_q.data()[b], lengths.cu_seqlens_k.data()[b]);
  }
  batches.AddRows(lengths.cu_seqlens_q.data()[num_seqs], total_q, num_heads);
  batches.Finish();
  return {};
}

}  // namespace varlen::sparse_prefill
