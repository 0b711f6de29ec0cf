#pragma once

#include <cmath>

#include "core/jsd-words-device.h"
#include "core/linear-logits-device.h"

// What this op adds to the kernels of core/jsd-device.h and core/linear-logits-device.h. A chunk of
// tokens has its logits in memory, as float32 rows of the tokens that count: the mixture of both
// sides needs whole rows of both, whichever words the divergence is over.
namespace varlen::fused_linear_jsd {

// u of one side, of every row of a chunk.
template <class T>
struct DeviceLogitRows {
  using Product = TileProduct<T, Summed::kAlongRows, Summed::kAlongRows>;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = sizeof(T) == 4 ? 1 : 2;  // two of float spill
  static constexpr int64_t kSharedBytes = Product::kSharedBytes;

  struct Params {
    DeviceLinearLogits<T> in;
    DeviceRows rows;
    DeviceChunk chunk;  // words: all
    float* logits;      // [chunk.num_rows, stride]
    int64_t stride;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int row_tiles = internal::Tiles(internal::CountedRows(p.rows, p.chunk), Product::kSide);
    const int tasks = row_tiles * internal::Tiles(p.chunk.num_words, Product::kSide);
    // Blocks that run together take tiles of rows against the same words.
    for (auto id = static_cast<int>(simt::BlockIndex()); id < tasks;
         id += static_cast<int>(simt::GridSize())) {
      const int first_row = id % row_tiles * Product::kSide;
      const int first_word = id / row_tiles * Product::kSide;
      Product product;
      product.Multiply(internal::RowsOf(p.in, p.rows, p.chunk), first_row,
                       internal::WordsOf(p.in, p.chunk), first_word, p.in.hidden_size, shared);
      Store(p, product, first_row, first_word);
    }
  }

 private:
  static SIMT_FN void Store(const Params& p, const Product& product, int first_row,
                            int first_word) {
    const int64_t counted = internal::CountedRows(p.rows, p.chunk);
    const int64_t word = first_word + simt::Opaque(Product::ColumnOf(0, 0));
    const auto left = static_cast<int>(p.chunk.num_words - word);
    SIMT_UNROLL
    for (int slab = 0; slab < Product::kSlabs; ++slab) {
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t place = first_row + simt::Opaque(Product::RowOf(slab, half));
        if (place >= counted) continue;
        float* to = p.logits + place * p.stride + word;
        SIMT_UNROLL
        for (int strip = 0; strip < Product::kStrips; ++strip) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int c = strip * 8 + i;
            if (c >= left) continue;
            float sum = product.sums[slab][strip][2 * half + i];
            if (p.in.bias != nullptr) sum += LoadFloat(p.in.bias + word + c);
            simt::Store(to + c, sum);
          }
        }
      }
    }
  }
};

// du of a chunk as the products with the weight and the hidden states take it, and its sums over
// tiles of rows for the bias.
template <class T>
struct DeviceNarrowRows {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int64_t kColumns = kThreads * internal::kChunk;  // of a block

  struct Params {
    DeviceRows rows;
    DeviceChunk chunk;  // words: all
    int64_t row_tile;
    const float* du;          // [chunk.num_rows, stride], stride a multiple of 8
    DeviceLogitChunk<T> out;  // values null: not wanted
    float* bias_partials;     // [row tiles][chunk.num_words], or null
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t counted = internal::CountedRows(p.rows, p.chunk);
    const int64_t tiles = internal::Tiles(counted, p.row_tile);
    const int64_t strips = internal::Tiles(p.chunk.num_words, kColumns);
    const float scale = p.out.Scale();
    for (int64_t id = simt::BlockIndex(); id < tiles * strips; id += simt::GridSize()) {
      const int64_t tile = id / strips, begin = tile * p.row_tile;
      const int64_t end = begin + p.row_tile < counted ? begin + p.row_tile : counted;
      const int64_t first = id % strips * kColumns + simt::ThreadIndex() * internal::kChunk;
      if (first >= p.chunk.num_words) continue;
      const int count = internal::ChunkLength(first, p.chunk.num_words);
      float sums[internal::kChunk] = {};
      for (int64_t row = begin; row < end; ++row) {
        float du[internal::kChunk];
        internal::LoadChunk(p.du + row * p.out.stride, first, count, true, du);
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) {
          sums[i] += du[i];
          du[i] *= scale;
        }
        if (p.out.values != nullptr) {
          internal::StoreChunk(du, p.out.values + row * p.out.stride, first, count, true);
        }
      }
      if (p.bias_partials == nullptr) continue;
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        if (i < count) simt::Store(p.bias_partials + tile * p.chunk.num_words + first + i, sums[i]);
      }
    }
  }
};

// Which tokens have a gradient, and a bound on dz for the scale of float16.
struct RowBounds {
  const uint8_t* mask;        // [num_tokens] or null
  const float* d_loss;        // [1] or null
  const float* d_per_token;   // [num_tokens] or null
  const float* coefficients;  // [num_tokens], like all of the forward pass
  const double* inner;        // over the whole vocabulary, or null
  const float* slopes;        // [num_tokens, num_words], over some words, like the next
  const float* tail;
  int64_t num_words;
  float loss_scale, log_vocab;

  SIMT_FN RowGradient Of(int64_t token) const {
    if (!RowCounts(mask, nullptr, token)) return {};
    const float factor = loss_scale * jsd::FactorOf(*this, token);
    if (factor == 0) return {};
    return {factor * (slopes == nullptr ? OverAll(token) : OverSome(token)), 0, 0, 0};
  }

 private:
  // q |ln q| < 1, and of the terms q (-ln p) each is at most their sum, inner - sum q ln q; where
  // the mixture stands for p, both are smaller.
  SIMT_FN float OverAll(int64_t token) const {
    return 2 * std::fabs(static_cast<float>(simt::Load(inner + token))) + log_vocab + 2;
  }
  SIMT_FN float OverSome(int64_t token) const {
    float largest = std::fabs(simt::Load(tail + token));
    for (int64_t k = 0; k < num_words; ++k) {
      largest = simt::Max(largest, std::fabs(simt::Load(slopes + token * num_words + k)));
    }
    return largest;
  }
};

}  // namespace varlen::fused_linear_jsd
