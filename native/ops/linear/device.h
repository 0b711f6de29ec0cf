#pragma once

#include "core/column-sums-device.h"
#include "core/cuda/kernel.h"
#include "core/host_device.h"
#include "core/tile-product-device.h"

// The products of the op on a GPU, a tile of 128 x 128 results at a time, and the sum over rows
// that the bias needs (core/column-sums-device.h). Every pointer is device memory; a row's bits do
// not depend on the others.
namespace varlen::linear {

// out[m, n] = sum_k left(m, k) right(n, k) + bias[n], in `Out`.
template <class T, class Out, Summed kLeft, Summed kRight>
struct DeviceProduct {
  using Product = TileProduct<T, kLeft, kRight>;
  using Element = T;
  using Result = Out;
  static constexpr bool kLeftAlongRows = kLeft == Summed::kAlongRows;
  static constexpr bool kRightAlongRows = kRight == Summed::kAlongRows;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = Product::kSharedBytes;

  struct Params {
    DeviceMatrix<T> left, right;
    int64_t rows, columns, depth;
    const T* bias;  // [columns] or null
    Out* out;       // [rows, columns]
  };
  static constexpr int64_t BlocksFor(const Params& p) { return Tiles(p.rows) * Tiles(p.columns); }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int64_t down = Tiles(p.rows), tasks = down * Tiles(p.columns);
    for (int64_t id = simt::BlockIndex(); id < tasks; id += simt::GridSize()) {
      const int64_t row = id % down * Product::kSide, column = id / down * Product::kSide;
      Product product;
      product.Multiply(p.left, row, p.right, column, p.depth, shared);
      Finish(p, product, row, column);
    }
  }

 private:
  static VARLEN_HOST_DEVICE constexpr int64_t Tiles(int64_t size) {
    return (size + Product::kSide - 1) / Product::kSide;
  }

  static SIMT_FN void Finish(const Params& p, const Product& product, int64_t first_row,
                             int64_t first_column) {
    const int64_t column = first_column + simt::Opaque(Product::ColumnOf(0, 0));
    const int64_t left = p.columns - column;
    const int columns = left < Product::kSide ? static_cast<int>(left) : Product::kSide;
    SIMT_UNROLL
    for (int slab = 0; slab < Product::kSlabs; ++slab) {
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + simt::Opaque(Product::RowOf(slab, half));
        if (row >= p.rows) continue;
        Out* to = p.out + row * p.columns + column;
        SIMT_UNROLL
        for (int strip = 0; strip < Product::kStrips; ++strip) {
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int c = strip * 8 + i;
            if (c >= columns) continue;
            float sum = product.sums[slab][strip][2 * half + i];
            if (p.bias != nullptr) sum += LoadFloat(p.bias + column + c);
            simt::Store(to + c, NarrowFloat<Out>(sum));
          }
        }
      }
    }
  }
};

// y = x W^T, dx = dy W, dW = dy^T x.
template <class T>
using DeviceForward = DeviceProduct<T, T, Summed::kAlongRows, Summed::kAlongRows>;
template <class T>
using DeviceInputGradients = DeviceProduct<T, T, Summed::kAlongRows, Summed::kDownRows>;
template <class T>
using DeviceWeightGradients = DeviceProduct<T, float, Summed::kDownRows, Summed::kDownRows>;

// dy of a row.
template <class T>
struct BiasTerm {
  const T* d_out;
  int64_t features;
  bool vector_access;

  SIMT_FN void Load(int64_t row, int64_t first, int count, float (&out)[internal::kChunk]) const {
    internal::LoadChunk(d_out + row * features, first, count, vector_access, out);
  }
};
template <class T>
using BiasSums = DeviceColumnSums<BiasTerm<T>>;

using Kernels =
    cuda::FloatKernels<DeviceForward, DeviceInputGradients, DeviceWeightGradients, BiasSums>;

}  // namespace varlen::linear
