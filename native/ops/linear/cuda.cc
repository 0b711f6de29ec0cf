#include "core/cuda/column-sums.h"
#include "core/cuda/elements.h"
#include "ops/linear/device.h"
#include "ops/linear/linear.h"

// Three products, by cuBLASLt where there is one. By our kernels a row's bits do not depend on the
// others; cuBLASLt picks its algorithm by the number of rows.
namespace varlen::linear {
namespace {

using cuda::Launch;

// A contiguous matrix of rows of `columns` elements.
template <class T>
DeviceMatrix<T> Matrix(const Tensor& tensor, int64_t rows, int64_t columns) {
  return {tensor.data<T>(), columns,
          nullptr,          rows,
          columns,          AllowsVectors(tensor.address(), columns, sizeof(T))};
}

// Rows of a tensor whose last dimension has `columns` elements.
int64_t RowsOf(const Tensor& tensor) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < tensor.rank; ++i) rows *= tensor.shape[i];
  return rows;
}

template <class Kernel>
void Multiply(Launch& launch, const typename Kernel::Params& p) {
  const bool done = launch.Multiply({.dtype = DTypeOf<typename Kernel::Element>::value,
                                     .left = {p.left.data, !Kernel::kLeftAlongRows},
                                     .right = {p.right.data, Kernel::kRightAlongRows},
                                     .rows = p.rows,
                                     .columns = p.columns,
                                     .depth = p.depth,
                                     .bias = p.bias,
                                     .out_dtype = DTypeOf<typename Kernel::Result>::value,
                                     .out = p.out});
  if (!done) launch.Run<Kernel>(Kernel::BlocksFor(p), p);
}

}  // namespace

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.x, [&]<class T>(Launch& launch) {
    const int64_t rows = RowsOf(p.x), in = p.weight.shape[1], out = p.weight.shape[0];
    Multiply<DeviceForward<T>>(launch, {Matrix<T>(p.x, rows, in), Matrix<T>(p.weight, out, in),
                                        rows, out, in, Launch::DataOf<T>(p.bias), p.out.data<T>()});
  });
}

Status RunCuda(const Backward& p) {
  return cuda::LaunchFor(p.x, [&]<class T>(Launch& launch) {
    const int64_t rows = RowsOf(p.x), in = p.weight.shape[1], out = p.weight.shape[0];
    const DeviceMatrix<T> d_out = Matrix<T>(p.d_out, rows, out);
    if (p.dx) {
      Multiply<DeviceInputGradients<T>>(
          launch, {d_out, Matrix<T>(p.weight, out, in), rows, in, out, nullptr, p.dx.data<T>()});
    }
    if (p.d_weight) {
      Multiply<DeviceWeightGradients<T>>(launch, {d_out, Matrix<T>(p.x, rows, in), out, in, rows,
                                                  nullptr, p.d_weight.data<float>()});
    }
    if (p.d_bias) {
      cuda::SumColumns(launch, BiasTerm<T>{d_out.data, out, d_out.vector_access}, rows, out,
                       p.d_bias.data<float>());
    }
  });
}

}  // namespace varlen::linear
