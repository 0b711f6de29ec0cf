#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"

// Matrix product on the CPU: C = alpha op(A) op(B), or C += it. float32 arithmetic whatever the
// storage; every element of C is summed in one fixed order, so its bits depend neither on threads
// nor on the rows and columns around it.
namespace varlen {

// A row-major matrix: element (r, c) is data[r * stride + c].
struct GemmInput {
  const void* data;
  DType dtype;              // float32, bfloat16, float16
  int64_t stride;           // elements from one stored row to the next
  bool transposed = false;  // op(X) = X^T: data then holds [columns of op][rows of op]
};

struct GemmOutput {
  void* data;
  DType dtype;
  int64_t stride;
};

struct Gemm {
  int64_t m, n, k;  // op(A) [m, k], op(B) [k, n], C [m, n]; any may be 0
  GemmInput a, b;
  GemmOutput c;
  float alpha = 1;
  bool accumulate = false;  // add to C instead of overwriting it
};

Status Multiply(const Gemm& gemm);

}  // namespace varlen
