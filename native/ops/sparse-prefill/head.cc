#include "ops/sparse-prefill/head.h"

#include <string>

namespace varlen::sparse_prefill {
namespace {

Status Broken(const std::string& what, int64_t got, const std::string& expected) {
  return Invalid(Code::kIndex, "plan", what, std::to_string(got), expected);
}

constexpr int64_t kHeaderWords = sizeof(Header) / sizeof(int32_t);

}  // namespace

Status ReadHeader(const int32_t* words, int64_t size, Header* header,
                  std::vector<SequenceInfo>* sequences,
                  std::vector<std::unique_ptr<Modalities>>* modalities,
                  std::vector<HeadWords>* heads) {
  if (size < kHeaderWords || words[0] != kMagic) {
    return Broken("is not a plan", size < 1 ? 0 : words[0], std::to_string(kMagic));
  }
  std::memcpy(header, words, sizeof(Header));
  const int64_t seqs = header->num_seqs, per_seq = header->num_heads;
  if (seqs < 0 || per_seq < 0 || header->num_modalities < 0 || header->num_modalities > 255 ||
      kHeaderWords + 3 * (seqs + seqs * per_seq) > size) {
    return Broken("has a header that does not fit it", seqs, "a smaller number of sequences");
  }
  const int32_t* at = words + kHeaderWords;
  for (int64_t b = 0; b < seqs; ++b, at += 3) {
    const SequenceWords s{at[0], at[1], at[2]};
    if (s.q_length < 0 || s.k_length < 0 || (header->causal != 0 && s.q_length > s.k_length)) {
      return Broken("has a sequence of impossible length", s.q_length,
                    "0.." + std::to_string(s.k_length));
    }
    SequenceInfo info{s.q_length, s.k_length, header->causal != 0, nullptr};
    if (s.modality != 0) {
      if (s.modality < 0 || int64_t{s.modality} + (s.k_length + 3) / 4 > size) {
        return Broken("has a modality layout out of range", s.modality, "inside the plan");
      }
      auto m = std::make_unique<Modalities>();
      m->positions.resize(static_cast<size_t>(header->num_modalities));
      m->rank.resize(static_cast<size_t>(s.k_length));
      const auto* ids = reinterpret_cast<const uint8_t*>(words + s.modality);
      m->of.assign(ids, ids + s.k_length);
      for (int32_t x = 0; x < s.k_length; ++x) {
        const uint8_t id = m->of[static_cast<size_t>(x)];
        if (id >= header->num_modalities) {
          return Invalid(Code::kModality, "plan", "names an unknown modality", std::to_string(id),
                         "below " + std::to_string(header->num_modalities));
        }
        m->rank[static_cast<size_t>(x)] = static_cast<int32_t>(m->positions[id].size());
        m->positions[id].push_back(x);
      }
      info.modalities = m.get();
      modalities->push_back(std::move(m));
    }
    sequences->push_back(info);
  }
  for (int64_t i = 0; i < seqs * per_seq; ++i, at += 3) heads->push_back({at[0], at[1], at[2]});
  return {};
}

Status PlanView::Open(const Tensor& plan, PlanView* view) {
  view->words_ = plan.data<int32_t>();
  Status status = ReadHeader(view->words_, plan.size(), &view->header_, &view->sequences_,
                             &view->modalities_, &view->heads_);
  if (!status.ok()) return status;
  if (view->header_.words != plan.size()) {
    return Broken("has another size than its header says", plan.size(),
                  std::to_string(view->header_.words));
  }
  return {};
}

Status PlanView::Read(int64_t b, int64_t head, Pattern* pattern) const {
  const HeadWords& words = head_words(b, head);
  if (words.plan < 0 || words.capacity < 0 ||
      int64_t{words.plan} + words.capacity > header_.words) {
    return Broken("has a head outside of it", words.plan, "inside the plan");
  }
  return ReadPattern(words_, words.plan, int64_t{words.plan} + words.capacity, header_.words,
                     sequence(b), sequence(b).k_length, 0, pattern);
}

Status Head::Open(const PlanView& plan, int64_t b, int64_t head) {
  Pattern pattern;
  Status status = plan.Read(b, head, &pattern);
  if (status.ok()) Open(plan.sequence(b), std::move(pattern));
  return status;
}

void Head::Open(const SequenceInfo& sequence, Pattern pattern) {
  sequence_ = &sequence;
  pattern_ = std::move(pattern);
  CutTiles();
}

void Head::RowsOf(const Tile& tile, int32_t* rows) const {
  for (int32_t r = 0; r < tile.count; ++r) {
    rows[r] = tile.listed ? lists_[static_cast<size_t>(tile.begin + r)]
                          : static_cast<int32_t>(tile.begin + r);
  }
}

void Head::FillColumns(const Pattern& pattern, Stage stage, int32_t cell, const int32_t* rows,
                       int count, bool lines, int32_t* at, ColumnSet& set) const {
  for (int r = 0; r < count; ++r) at[r] = static_cast<int32_t>(rows[r] + sequence_->shift());
  set.Clear();
  AddColumns(pattern, stage, cell,
             {*sequence_, rows, at, count, FirstRows(count), sequence_->k_length, nullptr, lines},
             set);
}

void Head::CutList(Tile tile, const std::vector<int32_t>& rows, int per_tile) {
  tile.listed = true;
  tile.begin = static_cast<int64_t>(lists_.size());
  lists_.insert(lists_.end(), rows.begin(), rows.end());
  for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(per_tile)) {
    tile.count = static_cast<int32_t>(std::min<size_t>(per_tile, rows.size() - first));
    tiles_.push_back(tile);
    tile.begin += tile.count;
  }
}

// Rows of one part, or all rows when `rows` is empty.
void Head::CutPart(int32_t part, const Pattern& pattern, std::vector<int32_t> rows) {
  const bool grid = pattern.kind == Kind::kGrid || pattern.kind == Kind::kCellGrid;
  const int per_tile = pattern.PreferredRows();
  const int64_t shift = sequence_->shift();
  if (!grid || (!pattern.grid.row_lines() && !pattern.grid.slash_lines())) {
    const Stage stage = Stage::kWhole;
    if (!rows.empty()) return CutList({part, stage, -1, 0, 0, true}, rows, per_tile);
    for (int64_t begin = 0; begin < sequence_->q_length;) {
      const int64_t position = begin + shift;  // tiles start at multiples, wherever a chunk starts
      // Rounded down also before the first key, where a chunk that is not causal may start.
      const int64_t tile = position / per_tile - (position % per_tile < 0 ? 1 : 0);
      const int64_t end = std::min(sequence_->q_length, (tile + 1) * per_tile - shift);
      tiles_.push_back({part, stage, -1, static_cast<int32_t>(end - begin), begin, false});
      begin = end;
    }
    return;
  }
  if (rows.empty()) {
    rows.resize(static_cast<size_t>(sequence_->q_length));
    for (size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<int32_t>(r);
  }
  const Grid& g = pattern.grid;
  std::vector<int32_t> near, on_line, cell_begin(static_cast<size_t>(g.NumCells()) + 1, 0);
  const auto slash_cell = [&](int32_t row) {
    const int64_t x = row + shift;
    // A column line is kept by every row, so the slashes along it bring nothing.
    if (!g.slash_lines() || (g.column_lines() && g.OnColumnLine(x))) return int64_t{-1};
    return g.CellOf(x);
  };
  for (int32_t row : rows) {
    if (g.row_lines() && g.OnRowLine(row + shift)) {
      on_line.push_back(row);
      continue;
    }
    near.push_back(row);
    if (const int64_t cell = slash_cell(row); cell >= 0)
      ++cell_begin[static_cast<size_t>(cell) + 1];
  }
  CutList({part, Stage::kRowLines, -1, 0, 0, true}, on_line, per_tile);
  CutList({part, Stage::kNear, -1, 0, 0, true}, near, per_tile);
  if (!g.slash_lines()) return;
  has_slashes_ = true;
  for (size_t c = 1; c < cell_begin.size(); ++c) cell_begin[c] += cell_begin[c - 1];
  std::vector<int32_t> by_cell(static_cast<size_t>(cell_begin.back())), next = cell_begin;
  for (int32_t row : near) {
    const int64_t cell = slash_cell(row);
    if (cell >= 0) by_cell[static_cast<size_t>(next[static_cast<size_t>(cell)]++)] = row;
  }
  for (size_t c = 0; c + 1 < cell_begin.size(); ++c) {
    const std::vector<int32_t> members(by_cell.begin() + cell_begin[c],
                                       by_cell.begin() + cell_begin[c + 1]);
    CutList({part, Stage::kSlashes, static_cast<int32_t>(c), 0, 0, true}, members, per_tile);
  }
}

void Head::CutTiles() {
  tiles_.clear();
  lists_.clear();
  has_slashes_ = false;
  const bool query_parts = pattern_.kind == Kind::kQBoundary;
  if (!query_parts && pattern_.kind != Kind::kPairBoundary) {
    if (sequence_->q_length > 0) CutPart(0, pattern_, {});
    return;
  }
  const auto& positions = sequence_->modalities->positions;
  for (size_t m = 0; m < positions.size(); ++m) {
    std::vector<int32_t> rows;
    for (int32_t x : positions[m]) {
      if (x >= sequence_->shift()) rows.push_back(static_cast<int32_t>(x - sequence_->shift()));
    }
    if (rows.empty()) continue;
    CutPart(static_cast<int32_t>(m), query_parts ? pattern_.children[m] : pattern_,
            std::move(rows));
  }
}

}  // namespace varlen::sparse_prefill
