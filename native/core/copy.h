#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Moving elements between layouts and element types: what Tensor itself needs, before any op.
namespace varlen {

// dst = src (converted to dst's dtype, round to nearest even), equal shapes, dst contiguous.
// int64 and float64 narrow like a C cast; a float outside an integer's range is unspecified.
struct Copy {
  static constexpr const char* kName = "Tensor.to";
  Tensor src;
  Tensor dst;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("src", src, kAnyType, {}, Layout::kRows);
    v.Out("dst", dst, kAnyType, {});
  }
};

// dst += src, in dst's dtype with float32 arithmetic; equal shapes, dst contiguous. Sums gradients.
struct Accumulate {
  static constexpr const char* kName = "backward";
  Tensor src;
  Tensor dst;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("src", src, kFloats, {}, Layout::kRows);
    v.Out("dst", dst, kFloats, {});
  }
};

Status Run(const Copy& params);
Status Run(const Accumulate& params);

// Copies `src` into contiguous memory without conversion. What data() does in the end.
Status CopyOut(const Tensor& src, std::byte* dst);

}  // namespace varlen
