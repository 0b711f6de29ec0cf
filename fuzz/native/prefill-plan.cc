// The words of a prefill plan, as a tensor that anybody may have written: which keys each tile
// keeps.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "core/workspace.h"
#include "ops/sparse-prefill/head.h"

namespace {

using varlen::Tensor;
namespace prefill = varlen::sparse_prefill;

constexpr int64_t kHeaderWords = sizeof(prefill::Header) / sizeof(int32_t);
// Long enough for several tiles; a run stays short.
constexpr int32_t kMaxTokens = 300;
constexpr int64_t kMaxHeads = 4;

// A header that fits the input, so that the runs do not end there: its own checks see one in eight.
void Fit(std::vector<int32_t>& words) {
  if ((words[0] & 7) == 7) return;
  words[0] = prefill::kMagic;
  words[1] = std::abs(words[1] % 3);
  words[2] = std::abs(words[2] % 3);
  words[4] = std::abs(words[4] % 4);
  words[5] = static_cast<int32_t>(words.size());
}

// No sequence is longer than the run can take; the op compares lengths with its own before it
// starts.
void Shorten(std::vector<int32_t>& words) {
  const int64_t sequences = words[1];
  for (int64_t b = 0; b < sequences; ++b) {
    const auto at = static_cast<size_t>(kHeaderWords + 3 * b);
    if (at + 1 >= words.size()) return;
    words[at] %= kMaxTokens;
    words[at + 1] %= kMaxTokens;
  }
}

void Check(const prefill::Head& head) {
  const int64_t keys = head.sequence().k_length;
  varlen::Workspace memory(prefill::ColumnSet::BytesFor(keys));
  prefill::ColumnSet set(memory, keys);
  for (const prefill::Tile& tile : head.tiles()) {
    if (tile.count < 1 || tile.count > prefill::kTileRows) std::abort();
    int32_t rows[prefill::kTileRows];
    head.RowsOf(tile, rows);
    for (int r = 0; r < tile.count; ++r) {
      if (rows[r] < 0 || rows[r] >= head.sequence().q_length) std::abort();
    }
    for (const bool lines : {true, false}) {
      int64_t before = -1;
      head.ForColumns(tile, lines, set, [&](int64_t key, prefill::RowBits kept) {
        if (key <= before || key >= keys || kept == 0) std::abort();
        if ((kept & ~prefill::FirstRows(tile.count)) != 0) std::abort();
        before = key;
      });
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  std::vector<int32_t> words(bytes / sizeof(int32_t));
  if (words.size() < static_cast<size_t>(kHeaderWords)) return 0;
  std::memcpy(words.data(), data, words.size() * sizeof(int32_t));
  Fit(words);
  Shorten(words);
  const Tensor plan = Tensor::Empty(varlen::DType::kI32, {static_cast<int64_t>(words.size())});
  std::memcpy(plan.data<int32_t>(), words.data(), words.size() * sizeof(int32_t));
  prefill::PlanView view;
  if (!prefill::PlanView::Open(plan, &view).ok()) return 0;
  for (int64_t b = 0; b < view.num_seqs(); ++b) {
    for (int64_t h = 0; h < std::min(view.num_heads(), kMaxHeads); ++h) {
      prefill::Head head;
      if (head.Open(view, b, h).ok()) Check(head);
    }
  }
  return 0;
}
