#include "ops/sparse-prefill/pattern.h"

#include <string>

namespace varlen::sparse_prefill {
namespace {

constexpr int kMaxDepth = 8;
// The longest stride of a grid over fewer keys than that.
constexpr int64_t kMaxStride = 1 << 20;

Status Malformed(const std::string& what, int64_t got, const std::string& expected) {
  return Invalid(Code::kIndex, "plan", what, std::to_string(got), expected);
}

Status MalformedMask(const std::string& what, int64_t got, const std::string& expected) {
  return Invalid(Code::kBlockMask, "plan", what, std::to_string(got), expected);
}

// Takes fields of one node in order; out of words is remembered, not read.
class Fields {
 public:
  Fields(const int32_t* words, int64_t begin, int64_t end) : words_(words), at_(begin), end_(end) {}
  int64_t Next() { return at_ < end_ ? words_[at_++] : Short(); }
  const int32_t* Take(int64_t count) {
    if (count < 0 || count > end_ - at_) {
      Short();
      return nullptr;
    }
    const int32_t* start = words_ + at_;
    at_ += count;
    return start;
  }
  bool ok() const { return ok_; }

 private:
  int64_t Short() {
    ok_ = false;
    return 0;
  }
  const int32_t* words_;
  int64_t at_, end_;
  bool ok_ = true;
};

Status CheckAscending(const char* what, const int32_t* list, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (list[i] <= (i == 0 ? -1 : list[i - 1])) {
      return Malformed(std::string(what) + " must ascend from 0 without repeats", list[i],
                       "> " + std::to_string(i == 0 ? -1 : list[i - 1]));
    }
  }
  return {};
}

Status ReadBlockMask(Fields& fields, const SequenceInfo& sequence, int64_t columns, Pattern* p) {
  const int64_t rows = fields.Next(), cols = fields.Next(), has_inner = fields.Next();
  if (rows < 0 || cols < 0) return MalformedMask("counts blocks below 0", rows, ">= 0");
  p->num_row_blocks = rows;
  p->num_column_blocks = cols;
  p->row_starts = fields.Take(rows + 1);
  p->column_starts = fields.Take(cols + 1);
  p->pointers = fields.Take(rows + 1);
  if (!fields.ok()) return MalformedMask("of blocks is cut short", rows, "all its arrays");
  const auto check = [](const int32_t* starts, int64_t count, int64_t end, const char* what) {
    if (starts[0] != 0)
      return MalformedMask(std::string(what) + " must start at 0", starts[0], "0");
    for (int64_t i = 0; i < count; ++i) {
      if (starts[i + 1] < starts[i])
        return MalformedMask(std::string(what) + " must not decrease", starts[i + 1],
                             ">= " + std::to_string(starts[i]));
    }
    if (end >= 0 && starts[count] != end)
      return MalformedMask(std::string(what) + " must add up", starts[count], std::to_string(end));
    return Status{};
  };
  Status status = check(p->row_starts, rows, sequence.q_length, "rowSizes");
  if (status.ok()) status = check(p->column_starts, cols, columns, "colSizes");
  if (status.ok()) status = check(p->pointers, rows, -1, "indptr");
  if (!status.ok()) return status;
  const int64_t entries = p->pointers[rows];
  p->indices = fields.Take(entries);
  if (!fields.ok()) return MalformedMask("has fewer indices than indptr says", entries, "all");
  int64_t inner_bits = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t e = p->pointers[r]; e < p->pointers[r + 1]; ++e) {
      const int64_t c = p->indices[e];
      if (c < 0 || c >= cols || (e > p->pointers[r] && c <= p->indices[e - 1])) {
        return MalformedMask("names a block out of range or out of order", c,
                             "ascending in 0.." + std::to_string(cols - 1));
      }
      if (has_inner != 0) {
        p->inner.push_back(inner_bits);
        inner_bits += int64_t{p->row_starts[r + 1] - p->row_starts[r]} *
                      (p->column_starts[c + 1] - p->column_starts[c]);
      }
    }
  }
  if (has_inner != 0) {
    p->bits = fields.Take((inner_bits + 31) / 32);
    if (!fields.ok()) return MalformedMask("has too few inner bits", 0, std::to_string(inner_bits));
  }
  return {};
}

Status ReadGrid(Fields& fields, int64_t columns, Pattern* p) {
  const int64_t begin = fields.Next(), end = fields.Next(), stride = fields.Next();
  const int64_t phase = fields.Next(), row_phase = fields.Next();
  const auto flags = static_cast<int32_t>(fields.Next());
  p->sink = fields.Next();
  p->local = fields.Next();
  if (stride < 1 || phase < 0 || phase >= stride || row_phase < 0 || row_phase >= stride) {
    return Malformed("has a grid whose stride or phase is out of range", stride,
                     ">= 1, phases below it");
  }
  if (begin < 0 || end < -1) return Malformed("has a grid with a negative span", begin, ">= 0");
  // A head counts the rows of every cell: a few words must not claim gigabytes.
  if (stride > std::max(columns, kMaxStride)) {
    return Malformed("has a grid whose stride is longer than its keys", stride,
                     "<= " + std::to_string(std::max(columns, kMaxStride)));
  }
  p->grid =
      Grid(begin, end < 0 ? columns : std::min(end, columns), stride, phase, row_phase, flags);
  return {};
}

Status ReadCellGrid(Fields& fields, const int32_t* words, int64_t total_words, int64_t columns,
                    Pattern* p) {
  const auto flags = static_cast<int32_t>(fields.Next());
  p->sink = fields.Next();
  p->local = fields.Next();
  const int64_t cells = fields.Next(), num_lines = fields.Next();
  const int32_t* lines = fields.Take(num_lines);
  if (!fields.ok() || cells < 0 || cells + columns > total_words) {
    return Malformed("has cells out of range", cells, "an offset inside the plan");
  }
  for (int64_t x = 0; x < columns; ++x) {
    const int32_t cell = words[cells + x];
    if (cell < -1 || cell >= columns + num_lines + (1 << 20))
      return Malformed("has a cell out of range", cell, ">= -1 and small");
  }
  p->grid = Grid(words + cells, columns, lines, num_lines, flags);
  return {};
}

Status ReadChildren(Fields& fields, const int32_t* words, int64_t offset, int64_t end,
                    int64_t total_words, const SequenceInfo& sequence, int64_t columns, int depth,
                    Pattern* p) {
  const int64_t n = fields.Next();
  const int64_t count = p->kind == Kind::kPairBoundary ? n * n : n;
  if (n < 0 || n > 256) return Malformed("has too many parts", n, "0..256");
  const bool boundary = p->kind != Kind::kUnion;
  if (boundary) {
    if (depth > 0) {
      return Invalid(Code::kIncompatible, "plan", "nests a boundary pattern inside another",
                     "depth " + std::to_string(depth), "depth 0");
    }
    if (sequence.modalities == nullptr ||
        static_cast<int64_t>(sequence.modalities->positions.size()) != n) {
      return Invalid(Code::kModality, "plan", "has a boundary pattern for other modalities",
                     std::to_string(n), "those of the sequence");
    }
  }
  const int32_t* offsets = fields.Take(count);
  if (!fields.ok()) return Malformed("is cut short", count, "an offset per part");
  p->children.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i] == 0) {
      // An empty modality has no part; everything else must.
      const bool empty = p->kind == Kind::kQBoundary &&
                         sequence.modalities->positions[static_cast<size_t>(i)].empty();
      const bool pair = p->kind == Kind::kPairBoundary;
      if (!empty && !pair) return Malformed("lacks a part", i, "a pattern");
      continue;
    }
    const int64_t own = p->kind == Kind::kPairBoundary
                            ? static_cast<int64_t>(
                                  sequence.modalities->positions[static_cast<size_t>(i % n)].size())
                            : columns;
    if (offsets[i] < 0) return Malformed("has a part out of range", offsets[i], ">= 0");
    Status status = ReadPattern(words, offset + offsets[i], end, total_words, sequence, own,
                                depth + 1, &p->children[static_cast<size_t>(i)]);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace

Grid::Grid(const int32_t* cells, int64_t count, const int32_t* lines, int64_t num_lines,
           int32_t flags)
    : flags_(flags), end_(count), cells_(cells) {
  int32_t max_cell = -1;
  for (int64_t x = 0; x < count; ++x) max_cell = std::max(max_cell, cells[x]);
  std::vector<uint8_t> cell_is_line(static_cast<size_t>(max_cell + 1), 0);
  for (int64_t i = 0; i < num_lines; ++i) {
    if (lines[i] >= 0 && lines[i] <= max_cell) cell_is_line[static_cast<size_t>(lines[i])] = 1;
  }
  is_line_.resize(static_cast<size_t>(count));
  if (slash_lines()) members_.resize(static_cast<size_t>(max_cell + 1));
  for (int64_t x = 0; x < count; ++x) {
    const int32_t cell = cells[x];
    if (cell < 0) continue;
    is_line_[static_cast<size_t>(x)] = cell_is_line[static_cast<size_t>(cell)];
    if (is_line_[static_cast<size_t>(x)] != 0) line_columns_.push_back(static_cast<int32_t>(x));
    if (slash_lines()) members_[static_cast<size_t>(cell)].push_back(static_cast<int32_t>(x));
  }
}

Status ReadPattern(const int32_t* words, int64_t offset, int64_t limit, int64_t total_words,
                   const SequenceInfo& sequence, int64_t columns, int depth, Pattern* p) {
  if (depth > kMaxDepth) return Malformed("nests patterns too deeply", depth, "at most 8");
  if (offset < 0 || offset + 2 > limit) return Malformed("is cut short", offset, "a pattern");
  const int64_t end = offset + words[offset + 1];
  if (words[offset + 1] < 2 || end > limit) {
    return Malformed("has a pattern longer than its region", words[offset + 1],
                     "2.." + std::to_string(limit - offset));
  }
  p->kind = static_cast<Kind>(words[offset]);
  Fields fields(words, offset + 2, end);
  Status status;
  switch (p->kind) {
    case Kind::kDense:
      break;
    case Kind::kAShape:
      p->sink = fields.Next();
      p->local = fields.Next();
      break;
    case Kind::kTriShape:
      p->sink = fields.Next();
      p->local = fields.Next();
      p->last = fields.Next();
      break;
    case Kind::kVerticalSlash:
      p->slash_tile = fields.Next();
      p->ranks = fields.Next() != 0;
      p->num_verticals = fields.Next();
      p->num_slashes = fields.Next();
      p->verticals = fields.Take(p->num_verticals);
      p->slashes = fields.Take(p->num_slashes);
      if (!fields.ok()) break;
      if (p->slash_tile < 1) return Malformed("has a slash tile below 1", p->slash_tile, ">= 1");
      if (p->ranks && sequence.modalities == nullptr) {
        return Invalid(Code::kModality, "plan", "counts slashes in ranks without modalities",
                       "no modalities", "a modality layout");
      }
      status = CheckAscending("verticals", p->verticals, p->num_verticals);
      if (status.ok()) status = CheckAscending("slashes", p->slashes, p->num_slashes);
      break;
    case Kind::kBlocks: {
      p->block_rows = fields.Next();
      p->block_columns = fields.Next();
      p->first_block = fields.Next();
      p->num_row_blocks = fields.Next();
      p->row_words = fields.Next();
      if (p->block_rows < 1 || p->block_columns < 1 || p->num_row_blocks < 0 || p->row_words < 0) {
        return MalformedMask("has blocks of no size", p->block_rows, ">= 1");
      }
      p->bits = fields.Take(p->num_row_blocks * p->row_words);
      break;
    }
    case Kind::kBlockMask:
      status = ReadBlockMask(fields, sequence, columns, p);
      break;
    case Kind::kGrid:
      status = ReadGrid(fields, columns, p);
      break;
    case Kind::kCellGrid:
      status = ReadCellGrid(fields, words, total_words, columns, p);
      break;
    case Kind::kSfFixed:
      p->period = fields.Next();
      if (p->period < 1) return Malformed("has a period below 1", p->period, ">= 1");
      break;
    case Kind::kQBoundary:
    case Kind::kPairBoundary:
    case Kind::kUnion:
      status = ReadChildren(fields, words, offset, end, total_words, sequence, columns, depth, p);
      break;
    default:
      return Malformed("has an unknown kind of pattern", words[offset], "a resolved pattern");
  }
  if (!status.ok()) return status;
  if (!fields.ok()) return Malformed("is cut short", words[offset], "all fields of its kind");
  if (p->sink < 0 || p->local < 0 || p->last < 0) {
    return Malformed("has a negative width", std::min(p->sink, std::min(p->local, p->last)),
                     ">= 0");
  }
  return {};
}

bool Pattern::NearKeys() const {
  if (kind == Kind::kUnion) {
    return std::all_of(children.begin(), children.end(),
                       [](const Pattern& child) { return child.NearKeys(); });
  }
  return kind == Kind::kDense || kind == Kind::kAShape || kind == Kind::kTriShape ||
         kind == Kind::kGrid;
}

int Pattern::PreferredRows() const {
  int rows = kTileRows;
  if (kind == Kind::kVerticalSlash && num_slashes > 0) {
    rows = static_cast<int>(std::min<int64_t>(rows, slash_tile));
  }
  if (kind == Kind::kBlocks) rows = static_cast<int>(std::min<int64_t>(rows, block_rows));
  for (const Pattern& child : children) rows = std::min(rows, child.PreferredRows());
  return std::max(rows, 16);
}

namespace {

// Calls fn(group, rows) for runs of active rows with the same at / size.
template <class Fn>
void ForGroups(const Frame& frame, int64_t size, const Fn& fn) {
  RowBits left = frame.active;
  while (left != 0) {
    const int64_t group = frame.at[std::countr_zero(left)] / size;
    const RowBits rows = left & frame.Below((group + 1) * size);
    fn(group, rows);
    left &= ~rows;
  }
}

// i - j < local.
void AddWindow(const Frame& f, int64_t local, ColumnSet& set) {
  if (local <= 0) return;
  const int64_t end = f.End();
  const int64_t full = std::clamp<int64_t>(int64_t{f.at[f.Last()]} - local + 1, 0, end);
  const int64_t begin = std::clamp<int64_t>(int64_t{f.at[f.First()]} - local + 1, 0, full);
  for (int64_t j = begin; j < full; ++j) f.Add(set, j, f.Below(j + local));
  f.AddRange(set, full, end, f.active);
}

void AddSink(const Frame& f, int64_t sink, ColumnSet& set) {
  f.AddRange(set, 0, std::min(sink, f.End()), f.active);
}

// Slash offset s brings a tile [a0, a1] of coordinates the columns [a0 - s, a1 - s]: whole squares.
// Offsets are walked from the largest, so that ranges ascend and merge. emit(begin, end, rows).
template <class Emit>
void ForSlashRanges(const Pattern& p, const Frame& f, int64_t end, const Emit& emit) {
  ForGroups(f, p.slash_tile, [&](int64_t tile, RowBits rows) {
    const int64_t a0 = tile * p.slash_tile, a1 = a0 + p.slash_tile - 1;
    int64_t begin = 0, stop = 0;  // the range that is still growing
    for (int64_t n = p.num_slashes - 1; n >= 0; --n) {
      const int64_t s = p.slashes[n];
      if (s > a1) continue;
      const int64_t lo = std::max<int64_t>(0, a0 - s), hi = std::min(end, a1 - s + 1);
      if (lo >= end) break;
      if (lo > stop) {
        emit(begin, stop, rows);
        begin = lo;
      }
      stop = std::max(stop, hi);
    }
    emit(begin, stop, rows);
  });
}

void AddSlashLines(const Pattern& p, const Frame& f, ColumnSet& set) {
  for (RowBits left = f.active; left != 0; left &= left - 1) {
    const int r = std::countr_zero(left);
    for (int64_t n = 0; n < p.num_slashes && p.slashes[n] <= f.at[r]; ++n) {
      const int64_t j = int64_t{f.at[r]} - p.slashes[n];
      if (j < f.columns) f.Add(set, j, RowBits{1} << r);
    }
  }
}

void AddSlashes(const Pattern& p, const Frame& f, ColumnSet& set) {
  if (f.lines) return AddSlashLines(p, f, set);
  ForSlashRanges(p, f, f.End(), [&](int64_t begin, int64_t end, RowBits rows) {
    f.AddRange(set, begin, end, rows);
  });
}

// Inside a pair of modalities, slashes counted in positions: those that meet a key of the pair.
void AddAbsoluteSlashes(const Pattern& p, const Frame& f, ColumnSet& set) {
  int32_t at[kTileRows];
  for (int r = 0; r < f.count; ++r) {
    at[r] = static_cast<int32_t>(f.row[r] + f.sequence.shift());
  }
  const int32_t *first = f.positions, *last = f.positions + f.columns;
  const Frame whole{f.sequence,          f.row,   at,     f.count, f.active,
                    f.sequence.k_length, nullptr, f.lines};
  if (f.lines) {
    for (RowBits left = f.active; left != 0; left &= left - 1) {
      const int r = std::countr_zero(left);
      for (int64_t n = 0; n < p.num_slashes && p.slashes[n] <= at[r]; ++n) {
        const int32_t j = at[r] - p.slashes[n];
        if (std::binary_search(first, last, j)) set.Add(j, RowBits{1} << r);
      }
    }
    return;
  }
  ForSlashRanges(p, whole, whole.End(), [&](int64_t begin, int64_t end, RowBits rows) {
    const int64_t from = std::lower_bound(first, last, begin) - first;
    f.AddRange(set, from, std::lower_bound(first, last, end) - first, rows);
  });
}

// Slashes counted among the keys of a row's own modality.
void AddRankSlashes(const Pattern& p, const Frame& f, ColumnSet& set) {
  const Modalities& m = *f.sequence.modalities;
  for (size_t modality = 0; modality < m.positions.size(); ++modality) {
    int32_t at[kTileRows];
    RowBits rows = 0;
    for (int r = 0; r < f.count; ++r) {
      const auto position = static_cast<size_t>(f.row[r] + f.sequence.shift());
      at[r] = r == 0 ? 0 : at[r - 1];  // keeps `at` from falling where a row does not take part
      if (m.of[position] != modality) continue;
      at[r] = m.rank[position];
      if ((f.active >> r & 1) != 0) rows |= RowBits{1} << r;
    }
    if (rows == 0) continue;
    for (int r = f.count - 2; r >= 0; --r) at[r] = std::min(at[r], at[r + 1]);
    const std::vector<int32_t>& positions = m.positions[modality];
    AddSlashes(p,
               {f.sequence, f.row, at, f.count, rows, static_cast<int64_t>(positions.size()),
                positions.data(), f.lines},
               set);
  }
}

void AddVerticalSlash(const Pattern& p, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  for (int64_t n = 0; n < p.num_verticals && p.verticals[n] < end; ++n) {
    f.Add(set, p.verticals[n], f.active);
  }
  if (p.ranks == (f.positions != nullptr)) return AddSlashes(p, f, set);
  if (p.ranks) return AddRankSlashes(p, f, set);
  AddAbsoluteSlashes(p, f, set);
}

bool BitAt(const int32_t* bits, int64_t index) {
  return (static_cast<uint32_t>(bits[index >> 5]) >> (index & 31) & 1) != 0;
}

void AddBlocks(const Pattern& p, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  ForGroups(f, p.block_rows, [&](int64_t block, RowBits rows) {
    const int64_t index = block - p.first_block;
    if (index < 0 || index >= p.num_row_blocks) return;
    const int32_t* row = p.bits + index * p.row_words;
    for (int64_t w = 0; w < p.row_words; ++w) {
      for (auto word = static_cast<uint32_t>(row[w]); word != 0; word &= word - 1) {
        const int64_t begin = (w * 32 + std::countr_zero(word)) * p.block_columns;
        f.AddRange(set, begin, std::min(end, begin + p.block_columns), rows);
      }
    }
  });
}

void AddBlockMask(const Pattern& p, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  for (RowBits left = f.active; left != 0;) {
    const int first = std::countr_zero(left);
    const int32_t* after =
        std::upper_bound(p.row_starts, p.row_starts + p.num_row_blocks + 1, f.row[first]);
    const int64_t block = after - p.row_starts - 1;
    RowBits rows = 0;
    for (int r = first; r < f.count && f.row[r] < p.row_starts[block + 1]; ++r) {
      rows |= RowBits{1} << r;
    }
    rows &= left;
    left &= ~rows;
    for (int64_t e = p.pointers[block]; e < p.pointers[block + 1]; ++e) {
      const int64_t begin = p.column_starts[p.indices[e]];
      const int64_t width = p.column_starts[p.indices[e] + 1] - begin;
      const int64_t stop = std::min(end, begin + width);
      if (p.inner.empty()) {
        f.AddRange(set, begin, stop, rows);
        continue;
      }
      for (int64_t j = begin; j < stop; ++j) {
        RowBits kept = 0;
        for (RowBits some = rows; some != 0; some &= some - 1) {
          const int r = std::countr_zero(some);
          const int64_t bit = p.inner[static_cast<size_t>(e)] +
                              (f.row[r] - p.row_starts[block]) * width + (j - begin);
          if (BitAt(p.bits, bit)) kept |= RowBits{1} << r;
        }
        if (kept != 0) f.Add(set, j, kept);
      }
    }
  }
}

void AddFixed(const Pattern& p, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  ForGroups(f, p.period, [&](int64_t group, RowBits rows) {
    // Rows before the first key, of a chunk that is not causal, have no group.
    f.AddRange(set, std::clamp<int64_t>(group * p.period, 0, end),
               std::clamp<int64_t>((group + 1) * p.period, 0, end), rows);
  });
  for (int64_t j = 0; j < end; j += p.period) f.Add(set, j, f.active);
}

// The slashes of one cell for rows of that cell: what sink, window and column lines keep anyway
// belongs to the near stage.
void AddCell(const Pattern& p, int64_t cell, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  p.grid.ForMembers(cell, [&](int64_t j) {
    if (j >= end) return false;
    if (j < p.sink || (p.grid.column_lines() && p.grid.OnColumnLine(j))) return true;
    const RowBits rows = f.active & ~f.Below(j + p.local);
    if (rows != 0) f.Add(set, j, rows);
    return true;
  });
}

void AddGrid(const Pattern& p, Stage stage, const Frame& f, ColumnSet& set) {
  const int64_t end = f.End();
  AddSink(f, p.sink, set);
  AddWindow(f, p.local, set);
  if (p.grid.column_lines()) {
    p.grid.ForColumnLines([&](int64_t j) {
      if (j < end) f.Add(set, j, f.active);
      return j < end;
    });
  }
  if (stage == Stage::kNear) return;
  RowBits on_line = 0;
  for (RowBits left = f.active; left != 0; left &= left - 1) {
    const int r = std::countr_zero(left);
    if (f.at[r] < 0) continue;
    if (p.grid.row_lines() && p.grid.OnRowLine(f.at[r])) {
      on_line |= RowBits{1} << r;
    } else if (p.grid.slash_lines()) {
      const int64_t cell = p.grid.CellOf(f.at[r]);
      if (cell < 0) continue;
      p.grid.ForMembers(cell, [&](int64_t j) {
        if (j < end) f.Add(set, j, RowBits{1} << r);
        return j < end;
      });
    }
  }
  if (on_line != 0) f.AddRange(set, 0, end, on_line);
}

// Rows of one modality against the keys of each: coordinates are ranks, and a row stands where the
// newest key that it sees stands.
void AddPairs(const Pattern& p, const Frame& f, ColumnSet& set) {
  const Modalities& m = *f.sequence.modalities;
  const size_t n = m.positions.size();
  for (size_t a = 0; a < n; ++a) {
    RowBits rows = 0;
    for (RowBits left = f.active; left != 0; left &= left - 1) {
      const int r = std::countr_zero(left);
      if (m.of[static_cast<size_t>(f.row[r] + f.sequence.shift())] == a) rows |= RowBits{1} << r;
    }
    if (rows == 0) continue;
    for (size_t b = 0; b < n; ++b) {
      const std::vector<int32_t>& keys = m.positions[b];
      if (keys.empty()) continue;
      int32_t at[kTileRows];
      RowBits seeing = 0;
      for (int r = 0; r < f.count; ++r) {
        const auto position = static_cast<int32_t>(f.row[r] + f.sequence.shift());
        const auto visible =
            f.sequence.causal ? std::upper_bound(keys.begin(), keys.end(), position) : keys.end();
        at[r] = static_cast<int32_t>(visible - keys.begin()) - 1;
        if (at[r] >= 0) seeing |= RowBits{1} << r;
      }
      if ((rows & seeing) == 0) continue;
      const Frame pair{f.sequence,  f.row,         at,
                       f.count,     rows & seeing, static_cast<int64_t>(keys.size()),
                       keys.data(), f.lines};
      AddColumns(p.children[a * n + b], Stage::kWhole, -1, pair, set);
    }
  }
}

void AddQueryParts(const Pattern& p, const Frame& f, ColumnSet& set) {
  const Modalities& m = *f.sequence.modalities;
  for (size_t a = 0; a < m.positions.size(); ++a) {
    Frame part = f;
    part.active = 0;
    for (RowBits left = f.active; left != 0; left &= left - 1) {
      const int r = std::countr_zero(left);
      if (m.of[static_cast<size_t>(f.row[r] + f.sequence.shift())] == a) {
        part.active |= RowBits{1} << r;
      }
    }
    if (part.active != 0) AddColumns(p.children[a], Stage::kWhole, -1, part, set);
  }
}

}  // namespace

void AddColumns(const Pattern& p, Stage stage, int64_t cell, const Frame& f, ColumnSet& set) {
  if (stage == Stage::kRowLines) return f.AddRange(set, 0, f.End(), f.active);
  if (stage == Stage::kSlashes) return AddCell(p, cell, f, set);
  switch (p.kind) {
    case Kind::kDense:
      return f.AddRange(set, 0, f.End(), f.active);
    case Kind::kAShape:
      AddSink(f, p.sink, set);
      return AddWindow(f, p.local, set);
    case Kind::kTriShape: {
      Frame rest = f;
      for (int r = 0; r < f.count; ++r) {
        if (f.row[r] >= f.sequence.q_length - p.last) rest.active &= ~(RowBits{1} << r);
      }
      if (rest.active != f.active) f.AddRange(set, 0, f.End(), f.active & ~rest.active);
      if (rest.active == 0) return;
      AddSink(rest, p.sink, set);
      return AddWindow(rest, p.local, set);
    }
    case Kind::kVerticalSlash:
      return AddVerticalSlash(p, f, set);
    case Kind::kBlocks:
      return AddBlocks(p, f, set);
    case Kind::kBlockMask:
      return AddBlockMask(p, f, set);
    case Kind::kGrid:
    case Kind::kCellGrid:
      return AddGrid(p, stage, f, set);
    case Kind::kSfFixed:
      return AddFixed(p, f, set);
    case Kind::kQBoundary:
      return AddQueryParts(p, f, set);
    case Kind::kPairBoundary:
      return AddPairs(p, f, set);
    case Kind::kUnion:
      for (const Pattern& child : p.children) AddColumns(child, Stage::kWhole, -1, f, set);
      return;
    default:
      return;
  }
}

}  // namespace varlen::sparse_prefill
