#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/simt/simt.h"

// Products of matrices on a GPU, a tile of 128 x 128 at a time: sums[m, n] = sum_k a(m, k) b(n, k)
// with mma.sync for 16-bit operands and fused multiply-adds for float, always summed in float.
// Three stages of shared memory are filled by cp.async while earlier ones are multiplied.
//
// The order of the additions depends on the length of k alone: a sum has the same bits wherever it
// lies in a tile. Depths past an operand's end count as 0 and are not read; sums of rows or columns
// past it mean nothing.
namespace varlen {

// How an operand lies in memory: the summed index runs along its rows, or down them.
enum class Summed : uint8_t { kAlongRows, kDownRows };

template <class T>
struct DeviceMatrix {
  const T* data;
  int64_t stride;       // elements between rows
  const int32_t* rows;  // [num_rows] or null: row i is the rows[i]-th of data
  int64_t num_rows, num_columns;
  bool vector_access;  // rows begin at multiples of 16 bytes
};

inline bool AllowsVectors(const void* data, int64_t stride, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * element_bytes % 16 == 0;
}

// One operand's part of a stage: 8 KiB as chunks of 16 bytes.
template <class T, Summed kSummed>
struct OperandTile {
  static constexpr int kThreads = 256;
  static constexpr int kSide = 128;              // of the result's tile
  static constexpr int kDepth = 64 / sizeof(T);  // of the summed index
  static constexpr int kPerChunk = 16 / sizeof(T);
  static constexpr int kRows = kSummed == Summed::kAlongRows ? kSide : kDepth;
  static constexpr int kChunks = (kSummed == Summed::kAlongRows ? kDepth : kSide) / kPerChunk;
  static constexpr int kRowStep = kThreads / kChunks;
  static constexpr int kElements = kSide * kDepth;

  // Element offset of a chunk. Of 16-bit elements chunks are XORed with the row inside each
  // 128-byte line, so that 8 rows of one chunk (an ldmatrix) touch all 32 banks; of rows of 64
  // bytes two share a line. Floats are read one by one, sides next to each other.
  static SIMT_FN int At(int row, int chunk) {
    if constexpr (kSummed == Summed::kAlongRows) {
      static_assert(kChunks == 4);
      return (row * kChunks + (chunk ^ ((row >> 1) & 3))) * kPerChunk;
    } else if constexpr (sizeof(T) == 4) {
      return (row * kChunks + chunk) * kPerChunk;
    } else {
      return (row * kChunks + (chunk ^ (row & 7))) * kPerChunk;
    }
  }
  // Of floats: the element at `side` and a depth that begins a chunk, and the ways from there to
  // the next depths of the chunk and to the next side but for the XOR, that is from an even one to
  // the odd one after it and by multiples of 8.
  static SIMT_FN int Element(int side, int depth) {
    if constexpr (kSummed == Summed::kAlongRows) return At(side, depth / kPerChunk);
    return At(depth, side / kPerChunk) + side % kPerChunk;
  }
  static constexpr int kNextDepth = kSummed == Summed::kAlongRows ? 1 : kSide;
  static constexpr int kNextSide = kSummed == Summed::kAlongRows ? kDepth : 1;

  // Copies stage after stage: sides first_side .. + 127, the next kDepth depths each time.
  class Loader {
   public:
    SIMT_FN Loader(const DeviceMatrix<T>& matrix, int64_t first_side) : matrix_(matrix) {
      const int chunk = simt::ThreadIndex() % kChunks;
      if constexpr (kSummed == Summed::kAlongRows) {
        SIMT_UNROLL
        for (int i = 0; i < kTwo; ++i) {
          int64_t row = first_side + Row(i);
          if (row >= matrix.num_rows) row = matrix.num_rows > 0 ? matrix.num_rows - 1 : 0;
          at_[i] = matrix.data + Source(row) * matrix.stride + chunk * kPerChunk;
        }
        left_ = static_cast<int>(matrix.num_columns) - chunk * kPerChunk;
      } else {
        const int64_t column = first_side + chunk * kPerChunk, left = matrix.num_columns - column;
        at_[0] = matrix.data + (left > 0 ? column : 0);
        left_ = left < 0 ? 0 : left < kPerChunk ? static_cast<int>(left) : kPerChunk;
        row_ = 0;
      }
    }

    SIMT_FN void Load(T* tile) {
      const int chunk = simt::ThreadIndex() % kChunks;
      SIMT_UNROLL
      for (int i = 0; i < kTwo; ++i) {
        T* to = tile + At(Row(i), chunk);
        if constexpr (kSummed == Summed::kAlongRows) {
          const int count = left_ < 0 ? 0 : left_ < kPerChunk ? left_ : kPerChunk;
          LoadChunk(to, at_[i], count, matrix_.vector_access);
          at_[i] += kDepth;
        } else {
          const int row = row_ + Row(i);
          const bool valid = row < matrix_.num_rows && left_ > 0;
          LoadChunk(to, valid ? at_[0] + Source(row) * matrix_.stride : matrix_.data,
                    valid ? left_ : 0, matrix_.vector_access);
        }
      }
      if constexpr (kSummed == Summed::kAlongRows) {
        left_ -= kDepth;
      } else {
        row_ += kDepth;
      }
    }

   private:
    // A thread copies two chunks of a stage.
    static constexpr int kTwo = kRows / kRowStep;
    static_assert(kTwo == 2);
    static SIMT_FN int Row(int i) { return simt::ThreadIndex() / kChunks + i * kRowStep; }
    SIMT_FN int64_t Source(int64_t row) const {
      return matrix_.rows == nullptr ? row : simt::Load(matrix_.rows + row);
    }

    const DeviceMatrix<T>& matrix_;
    const T* at_[2];
    int left_, row_;
  };

 private:
  static SIMT_FN void LoadChunk(T* to, const T* from, int count, bool vector_access) {
    if (vector_access) {
      simt::CopyAsync16(to, from, count * static_cast<int>(sizeof(T)));
      return;
    }
    uint32_t words[4] = {0, 0, 0, 0};
    SIMT_UNROLL
    for (int i = 0; i < kPerChunk; ++i) {
      if (i >= count) continue;
      if constexpr (sizeof(T) == 4) {
        words[i] = simt::FloatToBits(simt::Load(from + i));
      } else {
        words[i / 2] |= uint32_t{simt::Load(&from[i].bits)} << (16 * (i % 2));
      }
    }
    simt::Store(reinterpret_cast<simt::Vector4*>(to),
                simt::Vector4{words[0], words[1], words[2], words[3]});
  }
};

// Two neighbours of a row.
struct alignas(8) FloatPair {
  float first, second;
};

template <class T, Summed kLeft, Summed kRight>
struct TileProduct {
  using Left = OperandTile<T, kLeft>;
  using Right = OperandTile<T, kRight>;
  static constexpr int kThreads = Left::kThreads;
  static constexpr int kSide = Left::kSide;
  static constexpr int kDepth = Left::kDepth;
  static constexpr int kStages = 3;
  static constexpr int kStageElements = 2 * Left::kElements;
  static constexpr int64_t kSharedBytes = int64_t{kStages} * kStageElements * sizeof(T);
  // Eight warps, four down and two across, of 32 x 64 sums each: a thread has kSlabs x 2 rows and
  // kStrips x 2 columns, in the places where mma.sync leaves them.
  static constexpr int kWarpsDown = 4, kWarpsAcross = 2;
  static constexpr int kSlabs = 2, kStrips = 8;

  float sums[kSlabs][kStrips][4];  // [slab][strip][2 half + i]

  static SIMT_FN int WarpDown() { return simt::WarpIndex() % kWarpsDown; }
  static SIMT_FN int WarpAcross() { return simt::WarpIndex() / kWarpsDown; }
  static SIMT_FN int RowOf(int slab, int half) {
    return WarpDown() * 32 + slab * 16 + simt::LaneIndex() / 4 + 8 * half;
  }
  static SIMT_FN int ColumnOf(int strip, int i) {
    return WarpAcross() * 64 + strip * 8 + simt::LaneIndex() % 4 * 2 + i;
  }

  // The tile at row m of the result and column n, summed over `depth`. Shared memory is free
  // again when it returns, and must be when it is called.
  SIMT_FN void Multiply(const DeviceMatrix<T>& left, int64_t m, const DeviceMatrix<T>& right,
                        int64_t n, int64_t depth, unsigned char* shared) {
    Clear();
    T* stages = reinterpret_cast<T*>(shared);
    typename Left::Loader left_loader(left, m);
    typename Right::Loader right_loader(right, n);
    const auto steps = static_cast<int>((depth + kDepth - 1) / kDepth);
    const auto load = [&](int step, int stage) {
      if (step < steps) {
        left_loader.Load(stages + stage * kStageElements);
        right_loader.Load(stages + stage * kStageElements + Left::kElements);
      }
      simt::CopyAsyncCommit();  // an empty group keeps the count
    };
    SIMT_UNROLL
    for (int step = 0; step < kStages - 1; ++step) load(step, step);
    int stage = 0, before = kStages - 1;
    SIMT_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      simt::CopyAsyncWait<kStages - 2>();
      simt::SyncThreads();  // this stage is here; the one before it is no longer read
      load(step + kStages - 1, before);
      Add(stages + stage * kStageElements, stages + stage * kStageElements + Left::kElements);
      before = stage;
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    simt::CopyAsyncWait<0>();
    simt::SyncThreads();
  }

 private:
  SIMT_FN void Clear() {
    SIMT_UNROLL
    for (int slab = 0; slab < kSlabs; ++slab) {
      SIMT_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) sums[slab][strip][i] = 0;
      }
    }
  }

  SIMT_FN void Add(const T* left, const T* right) {
    if constexpr (sizeof(T) == 4) {
      AddPlain(left, right);
    } else {
      AddMatrices(left, right);
    }
  }

  SIMT_FN void AddMatrices(const T* left, const T* right) {
    const int lane = simt::Opaque(simt::LaneIndex());
    const int down = WarpDown() * 32, across = WarpAcross() * 64;
    SIMT_UNROLL
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[kSlabs][4];
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        const int row = down + slab * 16;
        if constexpr (kLeft == Summed::kAlongRows) {
          simt::LoadMatrix(a[slab], left + Left::At(row + lane % 16, k * 2 + lane / 16));
        } else {
          simt::LoadMatrixTransposed(
              a[slab], left + Left::At(k * 16 + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
        }
      }
      SIMT_UNROLL
      for (int pair = 0; pair < kStrips / 2; ++pair) {
        const int column = across + pair * 16;
        uint32_t b[4];
        if constexpr (kRight == Summed::kAlongRows) {
          simt::LoadMatrix(
              b, right + Right::At(column + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
        } else {
          simt::LoadMatrixTransposed(b,
                                     right + Right::At(k * 16 + lane % 16, column / 8 + lane / 16));
        }
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          simt::Mma<T>(sums[slab][2 * pair], a[slab], b[0], b[1]);
          simt::Mma<T>(sums[slab][2 * pair + 1], a[slab], b[2], b[3]);
        }
      }
    }
  }

  SIMT_FN void AddPlain(const float* left, const float* right) {
    SIMT_NO_UNROLL
    for (int chunk = 0; chunk < kDepth / Left::kPerChunk; ++chunk) {
      const float* rows = left + Left::Element(RowOf(0, 0), chunk * Left::kPerChunk);
      const float* columns = right + Right::Element(ColumnOf(0, 0), chunk * Left::kPerChunk);
      SIMT_UNROLL
      for (int k = 0; k < Left::kPerChunk; ++k) {
        float a[kSlabs][2];
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            a[slab][half] =
                simt::Load(rows + k * Left::kNextDepth + (slab * 16 + half * 8) * Left::kNextSide);
          }
        }
        SIMT_UNROLL
        for (int strip = 0; strip < kStrips; ++strip) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const float b =
                simt::Load(columns + k * Right::kNextDepth + (strip * 8 + i) * Right::kNextSide);
            SIMT_UNROLL
            for (int slab = 0; slab < kSlabs; ++slab) {
              SIMT_UNROLL
              for (int half = 0; half < 2; ++half) {
                sums[slab][strip][2 * half + i] += a[slab][half] * b;
              }
            }
          }
        }
      }
    }
  }
};

}  // namespace varlen
