// Tiles of logits from packed weights, and the gradients of hidden states and weights from tiles of
// du: the two halves of every fused loss (linear-logits.h). Included once per target.
#if defined(VARLEN_CORE_LINEAR_LOGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_LINEAR_LOGITS_INL_H_
#undef VARLEN_CORE_LINEAR_LOGITS_INL_H_
#else
#define VARLEN_CORE_LINEAR_LOGITS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/gemm-inl.h"
#include "core/linear-logits.h"
#include "core/parallel.h"
#include "core/row-softmax-inl.h"
#include "core/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// As in gemm.cc: a pass of this depth keeps a panel of the weight and the hidden states above it in
// the second-level cache; rows of the packed block are not a multiple of 4 KiB apart.
inline constexpr int64_t kLogitDepth = 512;
inline constexpr int64_t kHiddenStride = kLogitDepth + 16;
// Rows that one worker takes at a time. Also the tokens that are summed before dWeight is touched:
// it does not depend on threads.
inline constexpr int64_t kLogitRows = 8 * kTileRows;
inline constexpr int64_t kMaxColumns = 512;    // of a tile: 224 KiB of logits on AVX-512
inline constexpr int64_t kPanelsPerPiece = 2;  // of packing work
// Words of a tile of du that is left out when it is small; its rows are kTileRows. A product over
// fewer would spend its time on loading sums.
inline constexpr int64_t kFilterWords = 64;

// Columns of the vocabulary that are packed at a time, so that they fit in `bytes`.
constexpr int64_t ColumnsFor(int64_t bytes, int64_t hidden_size) {
  const int64_t fit = bytes / (int64_t{sizeof(float)} * std::max<int64_t>(1, hidden_size));
  return std::clamp(fit / kPanel * kPanel, kPanel, kMaxColumns);
}
// Rows of a tile of logits or du lie this far apart: not a power of two.
constexpr int64_t TileStride(int64_t columns) { return RoundUp(columns, kPanel) + 16; }

// `count` things in nearly equal parts that begin at multiples of kTileRows.
struct Parts {
  int64_t count, parts;
  Parts(int64_t count, int64_t wanted)
      : count(count), parts(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, Tiles(count)))) {}
  static int64_t Tiles(int64_t n) { return (n + kTileRows - 1) / kTileRows; }
  int64_t Begin(int64_t part) const {
    return std::min(count, Tiles(count) * part / parts * kTileRows);
  }
  int64_t Size(int64_t part) const { return Begin(part + 1) - Begin(part); }
};
// Parts of rows for the threads there are: at most kLogitRows each.
inline Parts RowParts(int64_t rows) {
  const int64_t least = (rows + kLogitRows - 1) / kLogitRows;
  // One tile of slack per part: parts begin at multiples of a tile.
  int64_t parts = RoundUp(std::max<int64_t>(1, least), NumThreads());
  while (parts < Parts::Tiles(rows) &&
         (Parts::Tiles(rows) + parts - 1) / parts * kTileRows > kLogitRows) {
    ++parts;
  }
  return Parts(rows, parts);
}

// A range of the vocabulary, packed: panels of weight^T, then the widened bias.
template <class T>
class PackedColumns {
 public:
  static int64_t BytesFor(int64_t columns, int64_t hidden_size) {
    return Workspace::BytesFor<float>(RoundUp(columns, kPanel) * hidden_size) +
           Workspace::BytesFor<float>(RoundUp(columns, kPanel));
  }
  PackedColumns(const LinearLogits& logits, int64_t columns, Workspace& memory)
      : logits_(logits),
        panels_(memory.Take<float>(RoundUp(columns, kPanel) * logits.hidden_size)),
        bias_(memory.Take<float>(RoundUp(columns, kPanel))) {}

  static int64_t Pieces(int64_t count) {
    return (NumPanels(count) + kPanelsPerPiece - 1) / kPanelsPerPiece;
  }
  void Pack(int64_t piece, int64_t first, int64_t count) const {
    const T* weight = static_cast<const T*>(logits_.weight);
    const int64_t end = std::min(NumPanels(count), (piece + 1) * kPanelsPerPiece);
    for (int64_t p = piece * kPanelsPerPiece; p < end; ++p) {
      const int64_t column = first + p * kPanel, columns = std::min(kPanel, count - p * kPanel);
      WidenTransposed(weight + column * logits_.weight_stride, logits_.weight_stride,
                      logits_.hidden_size, columns, panels_ + p * logits_.hidden_size * kPanel);
      if (logits_.bias != nullptr) {
        WidenRow(static_cast<const T*>(logits_.bias) + column, columns, 1.0f, bias_ + p * kPanel,
                 kPanel);
      }
    }
  }

  // z of counted rows [row, row + rows), at most kLogitRows, into tile[r * stride + column].
  void Logits(int64_t row, int64_t rows, int64_t count, float* tile, int64_t stride) const {
    Workspace memory(Workspace::BytesFor<float>(kLogitRows * kHiddenStride));
    float* hidden = memory.Take<float>(kLogitRows * kHiddenStride);
    const T* from = static_cast<const T*>(logits_.hidden);
    const int64_t size = logits_.hidden_size;
    for (int64_t k = 0; k < size; k += kLogitDepth) {
      const int64_t depth = std::min(kLogitDepth, size - k);
      for (int64_t r = 0; r < rows; ++r) {
        WidenRow(from + logits_.rows[row + r] * logits_.hidden_stride + k, depth, 1.0f,
                 hidden + r * kHiddenStride, RoundUp(depth, kLanes));
      }
      for (int64_t p = 0; p < NumPanels(count); ++p) {
        const float* panel = panels_ + (p * size + k) * kPanel;
        const int64_t columns = std::min(kPanel, count - p * kPanel);
        float* to = tile + p * kPanel;
        if (k == 0) {
          MultiplyPanel<Order::kRows>(rows, depth, hidden, kHiddenStride, panel, columns,
                                      StoreTile{to, stride});
        } else {
          MultiplyPanel<Order::kRows>(rows, depth, hidden, kHiddenStride, panel, columns,
                                      AddTile{to, stride});
        }
      }
    }
    if (size == 0) {
      for (int64_t r = 0; r < rows; ++r) std::fill_n(tile + r * stride, RoundUp(count, kPanel), 0);
    }
    const Activation activation(logits_.shape);
    for (int64_t r = 0; r < rows; ++r) {
      ActivateSegment(activation, logits_.bias == nullptr ? nullptr : bias_, count,
                      tile + r * stride);
    }
  }

 private:
  const LinearLogits& logits_;
  float* panels_;
  float* bias_;
};

// Passes over the vocabulary: for each range of columns, `pack(first, count, piece)` in
// `pack_pieces(count)` pieces, then `work(first, count, row, rows)` for parts of the rows. A row's
// ranges come in order.
template <class PackPieces, class Pack, class Work>
Status ForEachTile(const LinearLogits& logits, int64_t columns, const PackPieces& pack_pieces,
                   const Pack& pack, const Work& work) {
  const Parts parts = RowParts(logits.num_rows);
  for (int64_t first = 0; first < logits.vocab_size; first += columns) {
    const int64_t count = std::min(columns, logits.vocab_size - first);
    Status status = ParallelFor(pack_pieces(count),
                                [&](int64_t piece, int) HWY_ATTR { pack(first, count, piece); });
    if (!status.ok()) return status;
    status = ParallelFor(parts.parts, [&](int64_t part, int) HWY_ATTR {
      if (Cancelled()) return;
      work(first, count, parts.Begin(part), parts.Size(part));
    });
    if (!status.ok()) return status;
  }
  return {};
}

// c += tile in memory that is seldom in the cache: asked for before it is needed.
struct AddToMemory {
  float* c;
  int64_t stride;
  AddToMemory Below(int64_t rows) const { return {c + rows * stride, stride}; }
  HWY_INLINE void Prefetch(int64_t i) const {
    for (int64_t j = 0; j < kPanel; j += 16) __builtin_prefetch(c + i * stride + j, 1);
    __builtin_prefetch(c + i * stride + kPanel - 1, 1);
  }
  HWY_INLINE void operator()(int64_t i, int64_t column, Vector sum) const {
    float* at = c + i * stride + column;
    hn::StoreU(hn::Add(hn::LoadU(Floats(), at), sum), Floats(), at);
  }
};

// Columns of a range of the vocabulary in the gradient: a packed form of it takes 1 MiB at most.
inline int64_t GradientColumns(const LinearLogits& logits) {
  return std::min(ColumnsFor(int64_t{1} << 20, logits.hidden_size),
                  RoundUp(std::max<int64_t>(1, logits.vocab_size), kPanel));
}

// dHidden, dWeight and dBias from du, which a `Source` makes a tile at a time:
//   int64_t Pieces(int64_t count) const;  void Pack(int64_t piece, int64_t first, int64_t count);
//   void Fill(int64_t row, int64_t rows, int64_t first, int64_t count, float* du, int64_t stride)
// Rows are taken in bands: du of a band and a range of columns serves both products.
template <class T, class Source>
class Backpropagation {
 public:
  Backpropagation(const LinearLogits& logits, const LinearGradients& out, const Source& source)
      : logits_(logits),
        out_(out),
        source_(source),
        columns_(GradientColumns(logits)),
        padded_(NumPanels(logits.hidden_size) * kPanel),
        sum_stride_(padded_ + 16),
        band_(BandRows()) {}

  Status Run() {
    Status status = Clear();
    if (!status.ok() || logits_.num_rows == 0) return status;
    Workspace memory(
        Workspace::BytesFor<float>(columns_ * padded_) +
        Workspace::BytesFor<float>(band_ * TileStride(columns_)) +
        Workspace::BytesFor<float>(weights() ? band_ * padded_ : 0) +
        Workspace::BytesFor<float>(out_.d_hidden != nullptr ? band_ * sum_stride_ : 0));
    if (out_.skip_below > 0) kept_.resize(static_cast<size_t>(Parts::Tiles(band_) * Blocks()));
    weight_ = memory.Take<float>(columns_ * padded_);
    du_ = memory.Take<float>(band_ * TileStride(columns_));
    hidden_ = memory.Take<float>(weights() ? band_ * padded_ : 0);
    sums_ = memory.Take<float>(out_.d_hidden != nullptr ? band_ * sum_stride_ : 0);
    for (int64_t row = 0; row < logits_.num_rows && status.ok(); row += band_) {
      status = Band(row, std::min(band_, logits_.num_rows - row));
    }
    return status;
  }

 private:
  // Of the band's hidden states, of its sums, and of its du, per thread.
  static constexpr int64_t kBandBytes = int64_t{3} << 19;

  bool weights() const { return out_.d_weight != nullptr; }

  // A multiple of kLogitRows, so that the cut into bands changes no bit of dWeight.
  int64_t BandRows() const {
    const int64_t width = std::max(sum_stride_, TileStride(columns_));
    const int64_t fit = NumThreads() * kBandBytes / (width * int64_t{sizeof(float)});
    const int64_t most = std::max<int64_t>(1, fit / kLogitRows) * kLogitRows;
    const int64_t bands = std::max<int64_t>(1, (logits_.num_rows + most - 1) / most);
    return RoundUp((logits_.num_rows + bands - 1) / bands, kLogitRows);
  }

  Status Clear() const {
    constexpr int64_t kRows = 64;
    return ParallelFor((logits_.vocab_size + kRows - 1) / kRows, [&](int64_t piece, int) {
      const int64_t first = piece * kRows, count = std::min(kRows, logits_.vocab_size - first);
      const int64_t size = logits_.hidden_size;
      if (weights()) std::fill_n(out_.d_weight + first * size, count * size, 0.0f);
      if (out_.d_bias != nullptr) std::fill_n(out_.d_bias + first, count, 0.0f);
    });
  }

  Status Band(int64_t row, int64_t rows) const {
    Status status;
    if (weights()) {
      status = ParallelFor((rows + kTileRows - 1) / kTileRows, [&](int64_t piece, int) HWY_ATTR {
        const int64_t end = std::min(rows, (piece + 1) * kTileRows);
        for (int64_t r = piece * kTileRows; r < end; ++r) {
          WidenRowToPanels(Hidden(row + r), logits_.hidden_size, hidden_, band_, r);
        }
      });
    }
    // No word at all: a rank may have none of a vocabulary in parts.
    if (logits_.vocab_size == 0 && out_.d_hidden != nullptr) {
      std::fill_n(sums_, rows * sum_stride_, 0.0f);
    }
    for (int64_t first = 0; first < logits_.vocab_size && status.ok(); first += columns_) {
      status = Range(row, rows, first, std::min(columns_, logits_.vocab_size - first));
    }
    if (!status.ok() || out_.d_hidden == nullptr) return status;
    return ParallelFor((rows + kTileRows - 1) / kTileRows, [&](int64_t piece, int) HWY_ATTR {
      const int64_t end = std::min(rows, (piece + 1) * kTileRows);
      for (int64_t r = piece * kTileRows; r < end; ++r) StoreHiddenGradient(row + r, r);
    });
  }

  // Band rows against columns [first, first + count).
  Status Range(int64_t row, int64_t rows, int64_t first, int64_t count) const {
    const int64_t own = out_.d_hidden == nullptr ? 0 : (count + kPanel - 1) / kPanel;
    Status status = ParallelFor(own + source_.Pieces(count), [&](int64_t piece, int) HWY_ATTR {
      if (piece >= own) return source_.Pack(piece - own, first, count);
      const int64_t end = std::min(count, (piece + 1) * kPanel);
      for (int64_t v = piece * kPanel; v < end; ++v) {
        WidenRowToPanels(
            static_cast<const T*>(logits_.weight) + (first + v) * logits_.weight_stride,
            logits_.hidden_size, weight_, columns_, v);
      }
    });
    if (!status.ok()) return status;

    const Parts parts = RowParts(rows);
    status = ParallelFor(parts.parts, [&](int64_t part, int) HWY_ATTR {
      if (Cancelled()) return;
      const int64_t begin = parts.Begin(part), size = parts.Size(part);
      if (size == 0) return;
      float* du = du_ + begin * TileStride(columns_);
      source_.Fill(row + begin, size, first, count, du, TileStride(columns_));
      if (out_.skip_below > 0) FilterTiles(begin, size, count, du);
      if (out_.d_hidden != nullptr) AddKeptHiddenGradients(begin, size, first == 0, count, du);
    });
    if (!status.ok() || (out_.d_weight == nullptr && out_.d_bias == nullptr)) return status;

    const Parts words(count, std::max<int64_t>(4 * NumThreads(), count / kLogitRows));
    return ParallelFor(words.parts, [&](int64_t part, int) HWY_ATTR {
      if (Cancelled()) return;
      const int64_t begin = words.Begin(part), size = words.Size(part);
      if (size == 0) return;
      if (weights()) AddKeptWeightGradients(rows, first, begin, size);
      if (out_.d_bias != nullptr) AddBiasGradients(rows, first, begin, size);
    });
  }

  // Clears the tiles of a part in which no |du| reaches the threshold, and remembers the others.
  HWY_INLINE void FilterTiles(int64_t begin, int64_t rows, int64_t count, float* du) const {
    const int64_t stride = TileStride(columns_);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, rows - r);
      for (int64_t word = 0; word < count; word += kFilterWords) {
        const int64_t width = std::min(kFilterWords, count - word);
        float* tile = du + r * stride + word;
        bool kept = false;
        for (int64_t i = 0; i < height && !kept; ++i) {
          kept = !AllBelow(tile + i * stride, width, out_.skip_below);
        }
        kept_[TileAt(begin + r, word)] = kept;
        if (kept) continue;
        for (int64_t i = 0; i < height; ++i) std::fill_n(tile + i * stride, width, 0.0f);
      }
    }
  }
  int64_t Blocks() const { return (columns_ + kFilterWords - 1) / kFilterWords; }
  // Of the tile with this row of the band and this word of the range.
  size_t TileAt(int64_t row, int64_t word) const {
    return static_cast<size_t>(row / kTileRows * Blocks() + word / kFilterWords);
  }
  // Every |value| is below `limit`; NaN is not.
  static HWY_INLINE bool AllBelow(const float* values, int64_t n, float limit) {
    const Floats d;
    for (int64_t i = 0; i < n; i += kLanes) {
      const auto inside = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, n - i)));
      const Vector size = hn::IfThenElseZero(inside, hn::Abs(hn::LoadU(d, values + i)));
      if (!hn::AllTrue(d, hn::Lt(size, hn::Set(d, limit)))) return false;
    }
    return true;
  }
  // Calls run(first, last) for every longest run of steps of [0, size) that kept(step) keeps.
  template <class Kept, class Run>
  static HWY_INLINE void ForEachRun(int64_t size, int64_t step, const Kept& kept, const Run& run) {
    for (int64_t at = 0; at < size;) {
      int64_t end = at;
      while (end < size && kept(end)) end += step;
      if (end > at) run(at, std::min(end, size));
      at = end + step;
    }
  }

  // AddHiddenGradients of the tiles that are left, neighbours at once.
  HWY_INLINE void AddKeptHiddenGradients(int64_t begin, int64_t rows, bool first, int64_t count,
                                         const float* du) const {
    if (out_.skip_below <= 0) return AddHiddenGradients(begin, rows, first, 0, count, du);
    if (first) std::fill_n(sums_ + begin * sum_stride_, rows * sum_stride_, 0.0f);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const auto kept = [&](int64_t word) { return kept_[TileAt(begin + r, word)] != 0; };
      ForEachRun(count, kFilterWords, kept, [&](int64_t word, int64_t end) HWY_ATTR {
        AddHiddenGradients(begin + r, std::min<int64_t>(kTileRows, rows - r), false, word,
                           end - word, du + r * TileStride(columns_));
      });
    }
  }
  // AddWeightGradients of the tiles that are left.
  HWY_INLINE void AddKeptWeightGradients(int64_t rows, int64_t first, int64_t begin,
                                         int64_t words) const {
    if (out_.skip_below <= 0) return AddWeightGradients(0, rows, first, begin, words);
    for (int64_t word = begin; word < begin + words;) {
      const int64_t end = std::min(begin + words, (word / kFilterWords + 1) * kFilterWords);
      const auto kept = [&](int64_t row) { return kept_[TileAt(row, word)] != 0; };
      ForEachRun(rows, kTileRows, kept, [&](int64_t row, int64_t last) HWY_ATTR {
        AddWeightGradients(row, last, first, word, end - word);
      });
      word = end;
    }
  }

  // sums[begin ..] (+)= du weight, over `count` words of the range from `word` on.
  HWY_INLINE void AddHiddenGradients(int64_t begin, int64_t rows, bool first, int64_t word,
                                     int64_t count, const float* du) const {
    const int64_t size = logits_.hidden_size, stride = TileStride(columns_);
    for (int64_t p = 0; p < NumPanels(size); ++p) {
      const float* panel = weight_ + (p * columns_ + word) * kPanel;
      float* to = sums_ + begin * sum_stride_ + p * kPanel;
      const int64_t columns = std::min(kPanel, size - p * kPanel);
      if (first) {
        MultiplyPanel<Order::kRows>(rows, count, du + word, stride, panel, columns,
                                    StoreTile{to, sum_stride_});
      } else {
        MultiplyPanel<Order::kRows>(rows, count, du + word, stride, panel, columns,
                                    AddTile{to, sum_stride_});
      }
    }
  }

  // dWeight[first + begin ..] += du^T hidden over rows [row, end) of the band, kLogitRows at a
  // time.
  HWY_INLINE void AddWeightGradients(int64_t row, int64_t end, int64_t first, int64_t begin,
                                     int64_t words) const {
    const int64_t size = logits_.hidden_size, stride = TileStride(columns_);
    float* d_weight = out_.d_weight + (first + begin) * size;
    HWY_ALIGN float edge[kLogitRows * kPanel];
    for (int64_t p = 0; p < NumPanels(size); ++p) {
      const int64_t columns = std::min(kPanel, size - p * kPanel);
      const bool ragged = columns % kLanes != 0;  // whole vectors would reach into the next row
      for (int64_t token = row; token < end; token += kLogitRows) {
        const int64_t depth = std::min(kLogitRows, end - token);
        const float* du = du_ + token * stride + begin;
        const float* panel = hidden_ + (p * band_ + token) * kPanel;
        float* to = d_weight + p * kPanel;
        if (!ragged) {
          MultiplyPanel<Order::kColumns>(words, depth, du, stride, panel, columns,
                                         AddToMemory{to, size});
          continue;
        }
        for (int64_t word = 0; word < words; word += kLogitRows) {
          const int64_t height = std::min(kLogitRows, words - word);
          MultiplyPanel<Order::kColumns>(height, depth, du + word, stride, panel, columns,
                                         StoreTile{edge, kPanel});
          for (int64_t r = 0; r < height; ++r) {
            for (int64_t c = 0; c < columns; ++c) to[(word + r) * size + c] += edge[r * kPanel + c];
          }
        }
      }
    }
  }

  HWY_INLINE void AddBiasGradients(int64_t rows, int64_t first, int64_t begin,
                                   int64_t words) const {
    const int64_t stride = TileStride(columns_);
    for (int64_t v = begin; v < begin + words; ++v) {
      for (int64_t token = 0; token < rows; token += kLogitRows) {
        float sum = 0;
        const int64_t end = std::min(rows, token + kLogitRows);
        for (int64_t r = token; r < end; ++r) sum += du_[r * stride + v];
        out_.d_bias[first + v] += sum;
      }
    }
  }

  HWY_INLINE void StoreHiddenGradient(int64_t row, int64_t r) const {
    T* to = static_cast<T*>(out_.d_hidden) + logits_.rows[row] * out_.d_hidden_stride;
    StoreRow(sums_ + r * sum_stride_, logits_.hidden_size, to);
  }

  const T* Hidden(int64_t row) const {
    return static_cast<const T*>(logits_.hidden) + logits_.rows[row] * logits_.hidden_stride;
  }

  const LinearLogits& logits_;
  const LinearGradients& out_;
  const Source& source_;
  const int64_t columns_;  // of a range of the vocabulary
  const int64_t padded_;   // hidden_size in whole panels
  const int64_t sum_stride_;
  const int64_t band_;       // rows
  float* weight_ = nullptr;  // panels of a range of the weight, [columns_][kPanel] each
  float* du_ = nullptr;      // [band_][TileStride(columns_)]
  float* hidden_ = nullptr;  // panels of the band's hidden states, [band_][kPanel] each
  float* sums_ = nullptr;    // dHidden of the band, [band_][sum_stride_]
  // Of tiles of the band and the range at hand, [row tiles][Blocks()]: 0 where du was cleared.
  mutable std::vector<uint8_t> kept_;
};

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_LINEAR_LOGITS_INL_H_
