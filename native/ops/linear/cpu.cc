// Three products of core/gemm.h. The bias stands in the output before the product is added to it.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/column_sums-inl.h"
//
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/dispatch.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "ops/linear/linear.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::linear {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

std::byte* Start(const Tensor& tensor) {
  return tensor.storage->data() + tensor.offset * SizeOf(tensor.dtype);
}

// A contiguous matrix of `stride` columns as a factor.
GemmInput Matrix(const Tensor& tensor, int64_t stride, bool transposed = false) {
  return {Start(tensor), tensor.dtype, stride, transposed};
}

Status RunForward(const Forward& params) {
  const int64_t out_features = params.weight.shape[0], in_features = params.weight.shape[1];
  const int64_t rows = out_features == 0 ? 0 : params.out.size() / out_features;
  if (params.bias) {
    const auto bytes = static_cast<size_t>(out_features * SizeOf(params.bias.dtype));
    Status status = ParallelForRange(rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        std::memcpy(Start(params.out) + static_cast<size_t>(r) * bytes, Start(params.bias), bytes);
      }
    });
    if (!status.ok()) return status;
  }
  Gemm gemm{rows, out_features, in_features, {}, {}, {}};
  gemm.a = Matrix(params.x, in_features);
  gemm.b = Matrix(params.weight, in_features, /*transposed=*/true);
  gemm.c = {Start(params.out), params.out.dtype, out_features};
  gemm.accumulate = static_cast<bool>(params.bias);
  return Multiply(gemm);
}

template <class T>
Status SumRows(const Backward& params, int64_t rows, int64_t columns) {
  const T* d_out = params.d_out.data<T>();
  return SumColumns(rows, columns, params.d_bias.data<float>(),
                    [&](int64_t begin, int64_t end, float* partial) HWY_ATTR {
                      for (int64_t r = begin; r < end; ++r) {
                        AddRow(d_out + r * columns, columns, partial);
                      }
                    });
}

Status RunBackward(const Backward& params) {
  const int64_t out_features = params.weight.shape[0], in_features = params.weight.shape[1];
  const int64_t rows = out_features == 0 ? 0 : params.d_out.size() / out_features;
  if (params.dx) {
    const int64_t dx_rows = in_features == 0 ? 0 : params.dx.size() / in_features;
    Gemm gemm{dx_rows, in_features, out_features, {}, {}, {}};
    gemm.a = Matrix(params.d_out, out_features);
    gemm.b = Matrix(params.weight, in_features);
    gemm.c = {Start(params.dx), params.dx.dtype, in_features};
    if (Status status = Multiply(gemm); !status.ok()) return status;
  }
  if (params.d_weight) {
    Gemm gemm{out_features, in_features, rows, {}, {}, {}};
    gemm.a = Matrix(params.d_out, out_features, /*transposed=*/true);
    gemm.b = Matrix(params.x, in_features);
    gemm.c = {Start(params.d_weight), DType::kF32, in_features};
    if (Status status = Multiply(gemm); !status.ok()) return status;
  }
  if (!params.d_bias) return {};
  return DispatchDType<float, bfloat16, half>(params.d_out.dtype, "dOut", [&]<class Scalar>() {
    return SumRows<Scalar>(params, rows, out_features);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::linear {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::linear
#endif
