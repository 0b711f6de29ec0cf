#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Moving elements between layouts and element types: what Tensor itself needs, before any op.
namespace varlen {

// dst = src in dst's dtype; equal shapes, dst contiguous. To a float: rounds once, to nearest even.
// From a float to an integer: towards zero, to the nearest bound when outside the range, NaN to 0.
// From an integer to a smaller one: the low bits.
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

// dst += src, in dst's dtype with float32 arithmetic; equal shapes, one of the two contiguous. Sums
// gradients.
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
