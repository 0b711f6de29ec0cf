#pragma once

#include "core/op_test.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// Two results to be merged, for tests: their log-sum-exps lie within a few units of each other.
namespace varlen::sparse_prefill {

inline Merge MergeOf(DType dtype, int64_t rows, int64_t heads, int64_t dim) {
  Merge op;
  op.out1 = testing::Random(dtype, {rows, heads, dim}, 1);
  op.out2 = testing::Random(dtype, {rows, heads, dim}, 2);
  op.lse1 = testing::Random(DType::kF32, {heads, rows}, 3);
  op.lse2 = testing::Random(DType::kF32, {heads, rows}, 4);
  return op;
}

inline MergeBackward MergeBackwardOf(const Merge& merge) {
  MergeBackward op;
  const auto& shape = merge.out1.shape;
  op.out1 = merge.out1;
  op.out2 = merge.out2;
  op.lse1 = merge.lse1;
  op.lse2 = merge.lse2;
  op.d_out = testing::Random(merge.out1.dtype == DType::kF64 ? DType::kF32 : merge.out1.dtype,
                             {shape[0], shape[1], shape[2]}, 5);
  op.d_lse = testing::Random(DType::kF32, {shape[1], shape[0]}, 6);
  return op;
}

}  // namespace varlen::sparse_prefill
