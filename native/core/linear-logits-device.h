#pragma once

#include <cmath>
#include <cstdint>

#include "core/row-softmax-device.h"
#include "core/tile-product-device.h"

// Losses over a vocabulary from hidden states and the head's weight on a GPU: linear-logits.h as
// kernels. A tile of 128 rows x 128 words of logits exists in registers, is reduced to a few sums
// per row, and is computed again for the gradient:
//
//   forward   DeviceRowOrder, then per chunk of rows DeviceLinearStatistics (each block a tile of
//             rows against a fixed share of the vocabulary) and DeviceLinearMerge (shares in order)
//   backward  DeviceRowOrder, then per chunk of rows and of words DeviceLogitGradients (du of the
//             chunk, in T), DeviceHiddenGradients (+= du W), DeviceWeightGradients (+= du^T h) and
//             DeviceBiasGradients
//
// Chunks bound the workspace, whatever the number of tokens and of words. Nothing depends on the
// grid and there are no atomics. A row's numbers do not depend on the other rows, with one
// exception: float16 gradients too small for its normal range (DeviceGradientScale).
namespace varlen {

// Every pointer is device memory.
template <class T>
struct DeviceLinearLogits {
  const T* hidden;  // [total_tokens, hidden_size]
  int64_t hidden_stride;
  const T* weight;  // [vocab_size, hidden_size]
  int64_t weight_stride;
  const T* bias;           // [vocab_size] or null
  const int32_t* targets;  // [total_tokens]
  int64_t total_tokens, vocab_size, hidden_size;
  DeviceActivation activation;
  bool vector_hidden, vector_weight;  // rows begin at multiples of 16 bytes
};

// The rows of a pass: those that count, in order, then the others.
struct DeviceRows {
  const int32_t* order;  // [total_tokens]
  const int32_t* count;  // [1]: how many count
};

// What one launch works on. Rows are positions in DeviceRows::order.
struct DeviceChunk {
  int64_t first_row, num_rows;  // num_rows: as if all rows counted
  int64_t first_word, num_words;
};

namespace internal {

SIMT_FN int64_t CountedRows(const DeviceRows& rows, const DeviceChunk& chunk) {
  const int64_t left = simt::Load(rows.count) - chunk.first_row;
  return left < 0 ? 0 : left < chunk.num_rows ? left : chunk.num_rows;
}
SIMT_FN int Tiles(int64_t size, int64_t tile) { return static_cast<int>((size + tile - 1) / tile); }

// The rows of the chunk that count, of a tensor with one row per token.
template <class T>
SIMT_FN DeviceMatrix<T> RowsOf(const DeviceLinearLogits<T>& in, const DeviceRows& rows,
                               const DeviceChunk& chunk) {
  return {in.hidden,      in.hidden_stride, rows.order + chunk.first_row, CountedRows(rows, chunk),
          in.hidden_size, in.vector_hidden};
}
template <class T>
SIMT_FN DeviceMatrix<T> WordsOf(const DeviceLinearLogits<T>& in, const DeviceChunk& chunk) {
  return {in.weight + chunk.first_word * in.weight_stride,
          in.weight_stride,
          nullptr,
          chunk.num_words,
          in.hidden_size,
          in.vector_weight};
}

}  // namespace internal

// --- which rows ---------------------------------------------------------------------------------

// Filter::Counts(row) says.
template <class Filter>
struct DeviceRowOrder {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = kWarps * sizeof(int32_t);

  struct Params {
    Filter filter;
    int64_t num_rows;
    int32_t* order;
    int32_t* count;
  };

  // One block: once for the number, once for the places.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<int32_t*>(shared);
    int32_t own = 0;
    for (int64_t row = simt::ThreadIndex(); row < p.num_rows; row += kThreads) {
      own += p.filter.Counts(row);
    }
    for (int mask = simt::kWarpSize / 2; mask > 0; mask /= 2) own += simt::ShuffleXor(own, mask);
    const int32_t total = BeforeWarp(own, kWarps, partial);
    if (simt::ThreadIndex() == 0) simt::Store(p.count, total);
    int64_t before = 0;  // rows that count, before those of this round
    for (int64_t first = 0; first < p.num_rows; first += kThreads) {
      const int64_t row = first + simt::ThreadIndex();
      const bool counts = row < p.num_rows && p.filter.Counts(row);
      const uint32_t lanes = simt::Ballot(counts);
      const int32_t earlier = BeforeWarp(Ones(lanes), simt::WarpIndex(), partial) +
                              Ones(lanes & ((uint32_t{1} << simt::LaneIndex()) - 1));
      const int64_t position = before + earlier;
      if (row < p.num_rows) {
        simt::Store(p.order + (counts ? position : total + row - position),
                    static_cast<int32_t>(row));
      }
      for (int warp = 0; warp < kWarps; ++warp) before += simt::Load(partial + warp);
    }
  }

 private:
  static SIMT_FN int32_t Ones(uint32_t bits) {
    int32_t ones = 0;
    for (; bits != 0; bits &= bits - 1) ++ones;
    return ones;
  }
  // The sum of the values of the first `warps` warps; each leaves its own in `partial`.
  static SIMT_FN int32_t BeforeWarp(int32_t value, int warps, int32_t* partial) {
    simt::SyncThreads();  // what stood there has been read
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), value);
    simt::SyncThreads();
    int32_t sum = 0;
    for (int warp = 0; warp < warps; ++warp) sum += simt::Load(partial + warp);
    return sum;
  }
};

// Of the forward pass.
struct MaskFilter {
  const uint8_t* mask;   // [num_rows] or null
  const float* weights;  // [num_rows] or null

  SIMT_FN bool Counts(int64_t row) const { return RowCounts(mask, weights, row); }
};
// Of the backward pass: a row without a gradient is not read.
template <class Source>
struct GradientFilter {
  Source source;

  SIMT_FN bool Counts(int64_t row) const { return !source.Of(row).IsZero(); }
};

// --- forward ------------------------------------------------------------------------------------

// Columns of a share's partial sums.
enum RowPartial : int {
  kPartialMax,
  kPartialExp,
  kPartialShifted,
  kPartialSquares,
  kPartialLogits,
  kNumRowPartials,
};

template <class T>
struct DeviceLinearStatistics {
  using Product = TileProduct<T, Summed::kAlongRows, Summed::kAlongRows>;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = sizeof(T) == 4 ? 1 : 2;  // two of float spill
  static constexpr int64_t kSharedBytes =
      Product::kSharedBytes + int64_t{kThreads} * 4 * kNumRowPartials * sizeof(float);

  struct Params {
    DeviceLinearLogits<T> in;
    DeviceRows rows;
    DeviceChunk chunk;     // words: all
    int64_t share;         // words of a share, a multiple of the tile
    float* partials;       // [shares][kNumRowPartials][chunk.num_rows]
    float* target_logits;  // [chunk.num_rows]
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int row_tiles = internal::Tiles(internal::CountedRows(p.rows, p.chunk), Product::kSide);
    const int tasks = row_tiles * internal::Tiles(p.chunk.num_words, p.share);
    // Blocks that run together take tiles of rows against the same words.
    for (auto id = static_cast<int>(simt::BlockIndex()); id < tasks;
         id += static_cast<int>(simt::GridSize())) {
      Worker(p, id % row_tiles * Product::kSide, static_cast<int>(id / row_tiles), shared).Work();
    }
  }

 private:
  static constexpr int kSlabs = Product::kSlabs, kStrips = Product::kStrips;

  struct Worker {
    SIMT_FN Worker(const Params& p, int first_row, int share, unsigned char* shared)
        : p(p), first_row(first_row), share(share), shared(shared) {}

    SIMT_FN void Work() {
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) StoreSums(slab, half, {});
      }
      const int64_t begin = share * p.share, left = p.chunk.num_words - begin;
      const auto size = static_cast<int>(left < p.share ? left : p.share);
      SIMT_NO_UNROLL
      for (int done = 0; done < size; done += Product::kSide) {
        const DeviceMatrix<T> hidden = internal::RowsOf(p.in, p.rows, p.chunk);
        product.Multiply(hidden, first_row, internal::WordsOf(p.in, p.chunk), begin + done,
                         p.in.hidden_size, shared);
        const int words = size - done < Product::kSide ? size - done : Product::kSide;
        Activate(begin + done, words);
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) AddTile(slab, half, hidden, begin + done, words);
        }
      }
      Finish(internal::CountedRows(p.rows, p.chunk));
    }

    // A thread's sums of its rows stay in shared memory between tiles: there are no registers for
    // them beside the tile's.
    SIMT_FN float* SumsOf(int slab, int half) const {
      return reinterpret_cast<float*>(shared + Product::kSharedBytes) +
             (slab * 2 + half) * kNumRowPartials * kThreads + simt::Opaque(simt::ThreadIndex());
    }
    SIMT_FN RowSums<float> LoadSums(int slab, int half) const {
      const float* from = SumsOf(slab, half);
      return {simt::Load(from + kPartialMax * kThreads), simt::Load(from + kPartialExp * kThreads),
              simt::Load(from + kPartialShifted * kThreads),
              simt::Load(from + kPartialSquares * kThreads),
              simt::Load(from + kPartialLogits * kThreads)};
    }
    SIMT_FN void StoreSums(int slab, int half, const RowSums<float>& row) const {
      StoreRow(row, SumsOf(slab, half), kThreads);
    }
    static SIMT_FN void StoreRow(const RowSums<float>& row, float* to, int64_t stride) {
      simt::Store(to + kPartialMax * stride, row.max);
      simt::Store(to + kPartialExp * stride, row.exp);
      simt::Store(to + kPartialShifted * stride, row.shifted);
      simt::Store(to + kPartialSquares * stride, row.squares);
      simt::Store(to + kPartialLogits * stride, row.logits);
    }

    // From sums of products to logits; -infinity past the vocabulary.
    SIMT_FN void Activate(int64_t word, int words) {
      const int first = simt::Opaque(Product::ColumnOf(0, 0)), left = words - first;
      const T* biases = p.in.bias == nullptr ? nullptr : p.in.bias + word + first;
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        SIMT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const bool inside = strip * 8 + i < left;
          const float bias = inside && biases != nullptr ? LoadFloat(biases + strip * 8 + i) : 0.0f;
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            SIMT_UNROLL
            for (int half = 0; half < 2; ++half) {
              float& z = product.sums[slab][strip][2 * half + i];
              z = inside ? p.in.activation.Forward(z + bias) : -simt::Infinity();
            }
          }
        }
      }
    }

    SIMT_FN void AddTile(int slab, int half, const DeviceMatrix<T>& hidden, int64_t word,
                         int words) const {
      const int place = first_row + Product::RowOf(slab, half);
      const int first = simt::Opaque(Product::ColumnOf(0, 0)), left = words - first;
      int target = -1;  // column of the tile, from this thread's first on
      if (place < hidden.num_rows) {
        const int64_t at = simt::Load(p.in.targets + simt::Load(hidden.rows + place)) - word;
        if (at >= 0 && at < words) target = static_cast<int>(at) - first;
      }
      RowSums<float> row = LoadSums(slab, half);
      float max = row.max;
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        SIMT_UNROLL
        for (int i = 0; i < 2; ++i) {
          max = simt::Max(product.sums[slab][strip][2 * half + i], max);
        }
      }
      if (max > row.max) row.MoveTo(max);
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        SIMT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float z = product.sums[slab][strip][2 * half + i];
          if (strip * 8 + i < left) row.AddWord(z);
          if (strip * 8 + i == target) simt::Store(p.target_logits + place, z);
        }
      }
      StoreSums(slab, half, row);
    }

    // The four threads of a row, then the two warps, each by a fixed tree.
    SIMT_FN void Finish(int64_t num_rows) const {
      auto* beside = reinterpret_cast<float*>(shared);
      const bool first_lane = simt::LaneIndex() % 4 == 0;
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          RowSums<float> row = LoadSums(slab, half);
          SIMT_UNROLL
          for (int mask = 1; mask <= 2; mask *= 2) {
            row.Add(RowSums<float>{simt::ShuffleXor(row.max, mask), simt::ShuffleXor(row.exp, mask),
                                   simt::ShuffleXor(row.shifted, mask),
                                   simt::ShuffleXor(row.squares, mask),
                                   simt::ShuffleXor(row.logits, mask)});
          }
          const bool writes = first_lane && Product::WarpAcross() == 1;
          if (writes) StoreRow(row, beside + Product::RowOf(slab, half), Product::kSide);
          StoreSums(slab, half, row);
        }
      }
      simt::SyncThreads();
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int in_tile = Product::RowOf(slab, half);
          const bool writes = first_lane && Product::WarpAcross() == 0;
          if (!writes || first_row + in_tile >= num_rows) continue;
          RowSums<float> row = LoadSums(slab, half);
          const float* from = beside + in_tile;
          row.Add(RowSums<float>{simt::Load(from + kPartialMax * Product::kSide),
                                 simt::Load(from + kPartialExp * Product::kSide),
                                 simt::Load(from + kPartialShifted * Product::kSide),
                                 simt::Load(from + kPartialSquares * Product::kSide),
                                 simt::Load(from + kPartialLogits * Product::kSide)});
          const int64_t rows = p.chunk.num_rows;
          StoreRow(row, p.partials + int64_t{share} * kNumRowPartials * rows + first_row + in_tile,
                   rows);
        }
      }
      simt::SyncThreads();
    }

    const Params& p;
    const int first_row, share;
    Product product;
    unsigned char* shared;
  };
};

// Sink::Write(row, counts, facts) takes the row's statistics, as in row-softmax-device.h.
template <class Sink>
struct DeviceLinearMerge {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    Sink sink;
    DeviceRows rows;
    DeviceChunk chunk;
    int64_t shares, vocab_size;
    const int32_t* targets;
    const float* partials;
    const float* target_logits;
  };

  // A thread takes a row.
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t counted = internal::CountedRows(p.rows, p.chunk);
    for (int64_t i = simt::BlockIndex() * kThreads + simt::ThreadIndex(); i < p.chunk.num_rows;
         i += simt::GridSize() * kThreads) {
      const int32_t row = simt::Load(p.rows.order + p.chunk.first_row + i);
      if (i >= counted) {
        p.sink.Write(row, false, {});
        continue;
      }
      RowSums<double> sums;
      for (int64_t share = 0; share < p.shares; ++share) {
        const auto at = [&](RowPartial partial) {
          return simt::Load(p.partials + (share * kNumRowPartials + partial) * p.chunk.num_rows +
                            i);
        };
        sums.Add(RowSums<float>{at(kPartialMax), at(kPartialExp), at(kPartialShifted),
                                at(kPartialSquares), at(kPartialLogits)});
      }
      const int32_t target = simt::Load(p.targets + row);
      const bool known = target >= 0 && target < p.vocab_size;
      const float logit = known ? simt::Load(p.target_logits + i) : simt::BitsToFloat(0x7fc00000);
      p.sink.Write(row, true, FactsOf(sums, logit, p.vocab_size));
    }
  }
};

// --- backward -----------------------------------------------------------------------------------

// du is rounded to T. In float16 most of it would vanish: it is stored times a power of two that
// brings the largest possible one near 2^14, and what is below 2^-28 of that loses digits.
template <class Source>
struct DeviceGradientScale {
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = kWarps * sizeof(double);

  struct Params {
    Source source;
    DeviceActivation activation;
    int64_t num_rows;
    float* scale;  // [1]
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    double largest = 0;
    for (int64_t row = simt::ThreadIndex(); row < p.num_rows; row += kThreads) {
      const RowGradient g = p.source.Of(row);
      // |p ln p| < 1.
      const double bound = std::fabs(double{g.scale}) + std::fabs(double{g.slope}) +
                           std::fabs(double{g.offset}) + std::fabs(double{g.at_target});
      largest = FoldTwo(Fold::kMax, largest, bound);
    }
    largest = FoldLanes(Fold::kMax, largest);
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), largest);
    simt::SyncThreads();
    if (simt::ThreadIndex() != 0) return;
    largest = FoldFew<kWarps>(Fold::kMax, partial) *
              std::fabs(double{p.activation.scale / p.activation.temperature});
    simt::Store(p.scale, PowerBelow(largest));
  }

 private:
  // The largest power of two, 2^-100 to 2^100, with power * largest < 2^14; 1 for 0 and infinity.
  static SIMT_FN float PowerBelow(double largest) {
    if (!(largest > 0) || largest - largest != 0) return 1;
    const auto exponent = static_cast<int>(std::bit_cast<uint64_t>(largest) >> 52) - 1023;
    int power = 13 - exponent;
    power = power < -100 ? -100 : power > 100 ? 100 : power;
    return simt::BitsToFloat(static_cast<uint32_t>(power + 127) << 23);
  }
};

// Where du of a chunk stands.
template <class T>
struct DeviceLogitChunk {
  T* values;  // [chunk.num_rows, chunk.num_words], rows of whole 16 bytes
  int64_t stride;
  const float* scale;  // [1], by which they are too large; null: 1

  SIMT_FN float Scale() const { return scale == nullptr ? 1.0f : simt::Load(scale); }
};

// du of every counted row and word of a chunk.
template <class T, class Source>
struct DeviceLogitGradients {
  using Product = TileProduct<T, Summed::kAlongRows, Summed::kAlongRows>;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = sizeof(T) == 4 ? 1 : 2;  // two of float spill

  struct Params {
    DeviceLinearLogits<T> in;
    DeviceRows rows;
    DeviceChunk chunk;
    Source source;      // Source::Of(row): the RowGradient of a row
    const double* lse;  // [total_tokens]
    DeviceLogitChunk<T> out;
    float* bias_partials;  // [row tiles][chunk.num_words], sums over a tile's rows, or null
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int row_tiles = internal::Tiles(internal::CountedRows(p.rows, p.chunk), Product::kSide);
    const int tasks = row_tiles * internal::Tiles(p.chunk.num_words, Product::kSide);
    for (auto id = static_cast<int>(simt::BlockIndex()); id < tasks;
         id += static_cast<int>(simt::GridSize())) {
      Worker(p, id % row_tiles, id / row_tiles * Product::kSide).Work(shared);
    }
  }

 private:
  static constexpr int kSlabs = Product::kSlabs, kStrips = Product::kStrips;

  // What the threads of a block must know of a row.
  struct alignas(16) RowInfo {
    RowGradient gradient;
    float lse_high, lse_low;  // in two floats: the first subtracts without error from logits near
    int32_t target;
    int32_t unused;
  };
  static_assert(sizeof(RowInfo) == 32);

 public:
  static constexpr int64_t kSharedBytes = Product::kSharedBytes + Product::kSide * sizeof(RowInfo);

 private:
  struct Worker {
    SIMT_FN Worker(const Params& p, int row_tile, int first_word)
        : p(p), row_tile(row_tile), first_word(first_word) {}

    SIMT_FN void Work(unsigned char* shared) {
      const DeviceMatrix<T> hidden = internal::RowsOf(p.in, p.rows, p.chunk);
      auto* infos = reinterpret_cast<RowInfo*>(shared + Product::kSharedBytes);
      // The product's barriers make it seen.
      if (simt::ThreadIndex() < Product::kSide) {
        Describe(hidden, row_tile * Product::kSide + simt::ThreadIndex(),
                 infos + simt::ThreadIndex());
      }
      product.Multiply(hidden, row_tile * Product::kSide, internal::WordsOf(p.in, p.chunk),
                       first_word, p.in.hidden_size, shared);
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) TurnRow(slab, half, infos);
      }
      if (p.bias_partials != nullptr) SumRows(reinterpret_cast<float*>(shared));
      simt::SyncThreads();
      if (p.bias_partials != nullptr) StoreBias(reinterpret_cast<const float*>(shared));
      simt::SyncThreads();
    }

    SIMT_FN void Describe(const DeviceMatrix<T>& hidden, int64_t place, RowInfo* info) const {
      if (place >= hidden.num_rows) return;
      const int32_t row = simt::Load(hidden.rows + place);
      const RowGradient gradient = p.source.Of(row);
      const double lse = simt::Load(p.lse + row);
      const auto high = static_cast<float>(lse);
      simt::Store(&info->target, simt::Load(p.in.targets + row));
      simt::Store(&info->gradient.scale, gradient.scale);
      simt::Store(&info->gradient.slope, gradient.slope);
      simt::Store(&info->gradient.offset, gradient.offset);
      simt::Store(&info->gradient.at_target, gradient.at_target);
      simt::Store(&info->lse_high, high);
      simt::Store(&info->lse_low, static_cast<float>(lse - double{high}));
    }

    // Turns a row's sums into du and stores them.
    SIMT_FN void TurnRow(int slab, int half, const RowInfo* infos) {
      const int in_tile = simt::Opaque(Product::RowOf(slab, half));
      const int place = row_tile * Product::kSide + in_tile;
      const bool counts = place < internal::CountedRows(p.rows, p.chunk);
      const int first = first_word + simt::Opaque(Product::ColumnOf(0, 0));
      const int left = static_cast<int>(p.chunk.num_words) - first;
      const RowInfo* info = infos + in_tile;
      const RowGradient gradient{
          simt::Load(&info->gradient.scale), simt::Load(&info->gradient.slope),
          simt::Load(&info->gradient.offset), simt::Load(&info->gradient.at_target)};
      const float high = simt::Load(&info->lse_high), low = simt::Load(&info->lse_low);
      // In the tile, from this thread's first column on.
      const auto target = static_cast<int>(simt::Load(&info->target) - p.chunk.first_word - first);
      const T* biases = p.in.bias == nullptr ? nullptr : p.in.bias + p.chunk.first_word + first;
      const float scale = p.out.Scale();
      T* to = p.out.values + place * p.out.stride + first;
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        float* du = &product.sums[slab][strip][2 * half];
        SIMT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int c = strip * 8 + i;
          const bool inside = counts && c < left;
          const float bias = inside && biases != nullptr ? LoadFloat(biases + c) : 0.0f;
          du[i] = inside ? Gradient(gradient, high, low, du[i] + bias, c == target) : 0.0f;
        }
        if (!counts || strip * 8 >= left) continue;
        if constexpr (sizeof(T) == 4) {
          simt::Store(reinterpret_cast<FloatPair*>(to + strip * 8), {scale * du[0], scale * du[1]});
        } else {
          simt::Store(reinterpret_cast<uint32_t*>(to + strip * 8),
                      simt::PackPair<T>(scale * du[0], scale * du[1]));
        }
      }
    }

    SIMT_FN float Gradient(const RowGradient& gradient, float high, float low, float raw,
                           bool hit) const {
      const float z = p.in.activation.Forward(raw);
      const float log_p = z - high - low;
      const float probability = simt::Exp2(log_p * internal::kLog2e);
      float dz = probability * gradient.scale + gradient.offset;
      // An impossible token has log p = -infinity.
      if (gradient.slope != 0 && probability != 0) dz += gradient.slope * log_p * probability;
      if (hit) dz += gradient.at_target;
      return p.in.activation.Backward(dz, z);
    }

    // Of every column over this thread's rows and the eight lanes that have the others of the
    // warp; the warps lie apart.
    SIMT_FN void SumRows(float* shared) const {
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        SIMT_UNROLL
        for (int i = 0; i < 2; ++i) {
          float sum = 0;
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            SIMT_UNROLL
            for (int half = 0; half < 2; ++half) sum += product.sums[slab][strip][2 * half + i];
          }
          SIMT_UNROLL
          for (int mask = 4; mask <= 16; mask *= 2) sum += simt::ShuffleXor(sum, mask);
          if (simt::LaneIndex() < 4) {
            simt::Store(shared + Product::WarpDown() * Product::kSide + Product::ColumnOf(strip, i),
                        sum);
          }
        }
      }
    }
    SIMT_FN void StoreBias(const float* shared) const {
      const int column = simt::ThreadIndex();
      if (column >= Product::kSide || first_word + column >= p.chunk.num_words) return;
      float sum = 0;
      SIMT_UNROLL
      for (int warp = 0; warp < Product::kWarpsDown; ++warp) {
        sum += simt::Load(shared + warp * Product::kSide + column);
      }
      simt::Store(p.bias_partials + row_tile * p.chunk.num_words + first_word + column, sum);
    }

    const Params& p;
    const int row_tile, first_word;
    Product product;
  };
};

// dHidden of a chunk of rows, summed over the chunks of words.
template <class T>
struct DeviceHiddenGradients {
  using Product = TileProduct<T, Summed::kAlongRows, Summed::kDownRows>;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = Product::kSharedBytes;

  struct Params {
    DeviceLinearLogits<T> in;
    DeviceRows rows;
    DeviceChunk chunk;
    DeviceLogitChunk<T> du;
    float* sums;  // [chunk.num_rows, hidden_size], between the chunks of words
    T* d_hidden;  // [total_tokens, hidden_size]; rows that do not count become 0
    int64_t d_stride;
    bool first, last;  // chunk of words
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int64_t counted = internal::CountedRows(p.rows, p.chunk);
    const int64_t row_tiles = internal::Tiles(p.last ? p.chunk.num_rows : counted, Product::kSide);
    const int tasks = row_tiles * internal::Tiles(p.in.hidden_size, Product::kSide);
    const DeviceMatrix<T> du{p.du.values, p.du.stride, nullptr, counted, p.chunk.num_words, true};
    for (auto id = static_cast<int>(simt::BlockIndex()); id < tasks;
         id += static_cast<int>(simt::GridSize())) {
      const int first_row = id % row_tiles * Product::kSide;
      const int first_column = id / row_tiles * Product::kSide;
      Product product;
      product.Multiply(du, first_row, internal::WordsOf(p.in, p.chunk), first_column,
                       first_row < counted ? p.chunk.num_words : 0, shared);
      Finish(p, product, counted, first_row, first_column);
    }
  }

 private:
  static SIMT_FN void Finish(const Params& p, const Product& product, int64_t counted,
                             int first_row, int first_column) {
    const float unscale = 1.0f / p.du.Scale();
    SIMT_UNROLL
    for (int slab = 0; slab < Product::kSlabs; ++slab) {
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t place = first_row + Product::RowOf(slab, half);
        if (place >= p.chunk.num_rows || (!p.last && place >= counted)) continue;
        const int64_t column = first_column + Product::ColumnOf(0, 0);
        const auto columns = static_cast<int>(p.in.hidden_size - column);
        float* before = p.sums + place * p.in.hidden_size + column;
        T* to = p.d_hidden + column;
        if (p.last) to += simt::Load(p.rows.order + p.chunk.first_row + place) * p.d_stride;
        SIMT_UNROLL
        for (int strip = 0; strip < Product::kStrips; ++strip) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int c = strip * 8 + i;
            if (c >= columns) continue;
            float sum = product.sums[slab][strip][2 * half + i];
            if (place < counted && !p.first) sum += simt::Load(before + c);
            if (p.last) {
              simt::Store(to + c, NarrowFloat<T>(place < counted ? sum * unscale : 0.0f));
            } else {
              simt::Store(before + c, sum);
            }
          }
        }
      }
    }
  }
};

// dWeight of a chunk of words, summed over the chunks of rows in order.
template <class T>
struct DeviceWeightGradients {
  using Product = TileProduct<T, Summed::kDownRows, Summed::kDownRows>;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = Product::kSharedBytes;

  struct Params {
    DeviceLinearLogits<T> in;
    DeviceRows rows;
    DeviceChunk chunk;
    DeviceLogitChunk<T> du;
    float* d_weight;  // [vocab_size, hidden_size]
    bool first;       // chunk of rows
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int64_t counted = internal::CountedRows(p.rows, p.chunk);
    if (counted == 0 && !p.first) return;
    const int word_tiles = internal::Tiles(p.chunk.num_words, Product::kSide);
    const int tasks = word_tiles * internal::Tiles(p.in.hidden_size, Product::kSide);
    const DeviceMatrix<T> du{p.du.values, p.du.stride, nullptr, counted, p.chunk.num_words, true};
    for (auto id = static_cast<int>(simt::BlockIndex()); id < tasks;
         id += static_cast<int>(simt::GridSize())) {
      const int first_word = id % word_tiles * Product::kSide;
      const int first_column = id / word_tiles * Product::kSide;
      Product product;
      product.Multiply(du, first_word, internal::RowsOf(p.in, p.rows, p.chunk), first_column,
                       counted, shared);
      Finish(p, product, first_word, first_column);
    }
  }

 private:
  static SIMT_FN void Finish(const Params& p, const Product& product, int first_word,
                             int first_column) {
    const float unscale = 1.0f / p.du.Scale();
    SIMT_UNROLL
    for (int slab = 0; slab < Product::kSlabs; ++slab) {
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t word = first_word + Product::RowOf(slab, half);
        if (word >= p.chunk.num_words) continue;
        const int64_t column = first_column + Product::ColumnOf(0, 0);
        const auto columns = static_cast<int>(p.in.hidden_size - column);
        float* to = p.d_weight + (p.chunk.first_word + word) * p.in.hidden_size + column;
        SIMT_UNROLL
        for (int strip = 0; strip < Product::kStrips; ++strip) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int c = strip * 8 + i;
            if (c >= columns) continue;
            const float sum = product.sums[slab][strip][2 * half + i] * unscale;
            simt::Store(to + c, p.first ? sum : simt::Load(to + c) + sum);
          }
        }
      }
    }
  }
};

// dBias of a chunk of words: tiles of rows in order.
struct DeviceBiasGradients {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceRows rows;
    DeviceChunk chunk;
    int64_t row_tile;            // rows
    const float* bias_partials;  // [row tiles][chunk.num_words]
    float* d_bias;               // [vocab_size]
    bool first;                  // chunk of rows
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t tiles = internal::Tiles(internal::CountedRows(p.rows, p.chunk), p.row_tile);
    for (int64_t word = simt::BlockIndex() * kThreads + simt::ThreadIndex();
         word < p.chunk.num_words; word += simt::GridSize() * kThreads) {
      float* to = p.d_bias + p.chunk.first_word + word;
      const double before = p.first ? 0.0f : simt::Load(to);
      const float* column = p.bias_partials + word;
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        sum += simt::Load(column + tile * p.chunk.num_words);
      }
      simt::Store(to, static_cast<float>(before + sum));
    }
  }
};

}  // namespace varlen
