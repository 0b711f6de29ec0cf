#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "core/softmax-row-device.h"
#include "core/tile-chunk-device.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/device-sequence.h"

// What the forward kernels of every architecture know of a tile, and what they do to one of its
// rows: all but the matrix products and how tiles come into shared memory.
namespace varlen::varlen_attention {

// What the threads of a block must know of their tile. It stays in shared memory and is read where
// it is used: at headDim 128 the accumulators leave no registers for it.
struct ForwardTile {
  int64_t q_begin, k_begin;  // first row of the sequence
  int32_t q_slot, q_length, k_length;
  int32_t b, kv_head;
  int32_t first_token, first_in_group;  // of the tile's first row
  int32_t last_token;                   // of its last used row
  int32_t whole_begin, whole_end;       // keys that every row sees, trees apart
  int32_t id;
  int32_t split, splits;  // which part of the keys
  int32_t unused;
};

template <class T>
SIMT_FN Tiling RowTiling(const ForwardArguments<T>& p, int32_t block_m, int32_t block_n) {
  return {false, p.num_kv_heads, p.num_heads / p.num_kv_heads, p.head_dim, block_m, block_n};
}

// All lanes of a warp work it out, lane 0 writes it.
template <class T>
SIMT_FN void DescribeTile(const ForwardArguments<T>& p, int64_t id, const Tiling& tiling,
                          ForwardTile* to) {
  const int32_t group = tiling.group, block_m = tiling.block_rows;
  const Tile tile = DecodeTile(p.sequences, p.schedule, id, tiling);
  if (simt::LaneIndex() != 0) return;
  const DeviceSequence& s = tile.sequence;
  const int64_t first_row = tile.index * block_m, end_row = first_row + block_m - 1;
  const int64_t last_row = int64_t{s.q_length} * group - 1;
  const auto first_token = static_cast<int32_t>(first_row / group);
  const auto last_token = static_cast<int32_t>((end_row < last_row ? end_row : last_row) / group);
  simt::Store(&to->q_begin, s.q_begin);
  simt::Store(&to->k_begin, s.k_begin);
  simt::Store(&to->q_slot, s.q_slot);
  simt::Store(&to->q_length, s.q_length);
  simt::Store(&to->k_length, s.k_length);
  simt::Store(&to->b, tile.b);
  simt::Store(&to->kv_head, tile.kv_head);
  simt::Store(&to->split, tile.split);
  simt::Store(&to->splits, tile.splits);
  simt::Store(&to->first_token, first_token);
  simt::Store(&to->first_in_group, static_cast<int32_t>(first_row % group));
  simt::Store(&to->last_token, last_token);
  simt::Store(&to->whole_begin, s.KeysBegin(last_token, p.mask));
  simt::Store(&to->whole_end, s.KeysEnd(first_token, p.mask));
}

// The key blocks [begin, first] that a tile visits, from the last to the first; none when first is
// less than begin.
struct KeyBlocks {
  int32_t begin, first;
};

template <class T, int kBlockN>
struct ForwardRows {
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr float kLn2 = 0.6931471805599453f;

  SIMT_FN ForwardRows(const ForwardArguments<T>& p, const ForwardTile* tile) : p(p), tile(tile) {}

  SIMT_FN int32_t Group() const { return p.num_heads / p.num_kv_heads; }
  // Used rows and keys of the tile's sequence; its q_slot and rows in the tensors stay unread.
  SIMT_FN DeviceSequence Lengths() const {
    DeviceSequence s{};
    s.q_length = simt::Load(&tile->q_length);
    s.k_length = simt::Load(&tile->k_length);
    return s;
  }
  SIMT_FN int32_t TokenOf(int row) const {
    return simt::Load(&tile->first_token) + (simt::Load(&tile->first_in_group) + row) / Group();
  }
  SIMT_FN int32_t HeadOf(int row) const {
    return simt::Load(&tile->kv_head) * Group() +
           (simt::Load(&tile->first_in_group) + row) % Group();
  }

  // --- which key blocks? ---

  SIMT_FN KeyBlocks Blocks() const {
    if (simt::Load(&tile->first_token) >= simt::Load(&tile->q_length)) return {0, -1};
    const DeviceSequence lengths = Lengths();
    const int32_t keys_begin = lengths.KeysBegin(simt::Load(&tile->first_token), p.mask);
    const int32_t keys_end = lengths.KeysEnd(simt::Load(&tile->last_token), p.mask);
    const int32_t begin = keys_begin / kBlockN;
    const int32_t first = NextBlock((keys_end + kBlockN - 1) / kBlockN - 1, begin);
    return {begin, keys_begin < keys_end ? first : begin - 1};
  }
  // No score but the scaled product, and the largest is the largest after scaling too (but 0 times
  // the -inf of a masked score is NaN).
  SIMT_FN bool PlainScores() const {
    return p.softcap == 0 && p.alibi_slopes == nullptr && p.softmax_scale > 0;
  }
  // Does every row of the tile see every key of block n?
  SIMT_FN bool SeenWhole(int32_t n) const {
    return n * kBlockN >= simt::Load(&tile->whole_begin) &&
           (n + 1) * kBlockN <= simt::Load(&tile->whole_end) &&
           (p.mask.key_end == nullptr ||
            SmallestKeyEnd(KeyEnds(), n * kBlockN, EndOfBlock(n)) > simt::Load(&tile->last_token));
  }

  // Trees: which blocks does any row of the tile see?
  SIMT_FN const int32_t* KeyEnds() const { return p.mask.key_end + simt::Load(&tile->k_begin); }
  SIMT_FN int32_t EndOfBlock(int32_t n) const {
    const int32_t end = (n + 1) * kBlockN, length = simt::Load(&tile->k_length);
    return end < length ? end : length;
  }
  // n, or the next lower block that some row sees. The same in every warp.
  SIMT_FN int32_t NextBlock(int32_t n, int32_t begin) const {
    if (p.mask.key_end == nullptr) return n;
    while (n >= begin &&
           LargestKeyEnd(KeyEnds(), n * kBlockN, EndOfBlock(n)) <= simt::Load(&tile->first_token))
      --n;
    return n;
  }

  // --- rows of q: what is outside the sequence becomes zeros, whatever memory holds there ---

  // Chunks column, column + kStep, ... of one row, to `at(chunk)`.
  template <int kChunks, int kStep, class At>
  SIMT_FN void LoadRowOfQ(int row, int column, const At& at) const {
    const int32_t token = TokenOf(row);
    const bool valid = token < simt::Load(&tile->q_length);
    const T* from = p.q.data;
    if (valid) from += (simt::Load(&tile->q_begin) + token) * p.q.row + HeadOf(row) * p.q.head;
    SIMT_UNROLL
    for (int chunk = column; chunk < kChunks; chunk += kStep) {
      const int count = valid ? TileChunk<T>::Columns(p.head_dim, chunk) : 0;
      TileChunk<T>::LoadChunk(at(chunk), count > 0 ? from + chunk * TileChunk<T>::kPerChunk : from,
                              count, p.vector_loads);
    }
  }

  // --- one row of scores; score(j, e) is this lane's at key 8 j + 2 (lane mod 4) + e of block n,
  //     as mma.sync and wgmma leave them ---

  // Scale, cap, alibi and mask, as far as they change anything; `whole` is SeenWhole(n). Returns by
  // what the scores are still to be multiplied, to be in base 2. Pass by pass: all at once would
  // need more registers.
  template <class Score>
  SIMT_FN float ModifyRow(int lane, int row, int32_t n, bool whole, const Score& score) const {
    const int32_t first = n * kBlockN + lane % 4 * 2;
    const bool plain = PlainScores();
    if (!plain) ScaleRow(row, first, score);
    if (!whole) MaskRow(row, first, score);
    return plain ? p.softmax_scale * kLog2e : 1.0f;
  }
  template <class Score>
  SIMT_FN void ScaleRow(int row, int32_t first, const Score& score) const {
    const DeviceSequence lengths = Lengths();
    const int32_t token = TokenOf(row), position = lengths.Position(token);
    float slope = 0;
    if (p.alibi_slopes != nullptr && token < lengths.q_length) {
      slope = simt::Load(p.alibi_slopes + int64_t{simt::Load(&tile->b)} * p.alibi_sequence_stride +
                         HeadOf(row));
    }
    SIMT_UNROLL
    for (int j = 0; j < kBlockN / 8; ++j) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int32_t key = first + j * 8 + e;
        float u = score(j, e) * p.softmax_scale;
        if (p.softcap > 0) u = p.softcap * simt::Tanh(u / p.softcap);
        const int32_t distance = position > key ? position - key : key - position;
        score(j, e) = (u - slope * static_cast<float>(distance)) * kLog2e;
      }
    }
  }
  template <class Score>
  SIMT_FN void MaskRow(int row, int32_t first, const Score& score) const {
    const DeviceSequence lengths = Lengths();
    const int32_t token = TokenOf(row);
    const int32_t begin = lengths.KeysBegin(token, p.mask);
    const int32_t end = lengths.KeysEnd(token, p.mask);
    SIMT_UNROLL
    for (int j = 0; j < kBlockN / 8; ++j) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int32_t key = first + j * 8 + e;
        if (key < begin || key >= end) score(j, e) = -simt::Infinity();
      }
    }
    if (p.mask.key_end == nullptr) return;
    SIMT_UNROLL
    for (int j = 0; j < kBlockN / 8; ++j) {
      SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int32_t key = first + j * 8 + e;
        if (key < end && token >= simt::Load(KeyEnds() + key)) score(j, e) = -simt::Infinity();
      }
    }
  }

  template <class Score>
  static SIMT_FN float SoftmaxRow(float factor, float& maximum, float& sum, const Score& score) {
    return varlen::SoftmaxRow<kBlockN / 8>(factor, maximum, sum, score);
  }

  // --- results ---

  // Writes a row's lse; returns what its output is to be multiplied by.
  SIMT_FN float FinishRow(int lane, int row, float maximum, float sum) const {
    return FinishRow(lane, row, maximum, sum, p.softmax_lse);
  }
  SIMT_FN float FinishRow(int lane, int row, float maximum, float sum, float* softmax_lse) const {
    sum += simt::ShuffleXor(sum, 1);
    sum += simt::ShuffleXor(sum, 2);
    // A row without keys has the sum 0 (a NaN sum is not that).
    const bool seen = !(sum == 0);
    const int32_t token = TokenOf(row);
    if (lane % 4 == 0 && token < simt::Load(&tile->q_slot)) {
      const bool has_lse = seen && token < simt::Load(&tile->q_length);
      simt::Store(
          softmax_lse + HeadOf(row) * p.sequences.total_q + simt::Load(&tile->q_begin) + token,
          has_lse ? (maximum + simt::Log2(sum)) * kLn2 : -simt::Infinity());
    }
    return seen ? 1.0f / sum : 0.0f;
  }
  // A chunk of a row of the output, from shared memory.
  SIMT_FN void StoreChunk(int row, int chunk, const T* from) const {
    const int32_t token = TokenOf(row);
    const int count = TileChunk<T>::Columns(p.head_dim, chunk);
    if (token >= simt::Load(&tile->q_slot) || count == 0) return;
    T* to = p.out.data + (simt::Load(&tile->q_begin) + token) * p.out.row +
            HeadOf(row) * p.out.head + chunk * TileChunk<T>::kPerChunk;
    const simt::Vector4 values = token < simt::Load(&tile->q_length)
                                     ? simt::Load(reinterpret_cast<const simt::Vector4*>(from))
                                     : simt::Vector4{0, 0, 0, 0};
    TileChunk<T>::StoreChunk(to, values, count, p.vector_stores);
  }

  const ForwardArguments<T>& p;
  const ForwardTile* tile;
};

}  // namespace varlen::varlen_attention
