#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// out = a + b for tensors of one shape, in float32, rounded once. Both have the gradient of out, so
// there is no backward kernel.
namespace varlen::add {

struct Forward {
  static constexpr const char* kName = "add";
  static constexpr bool kOnGpu = true;

  Tensor a, b;  // [...]
  Tensor out;   // [...], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("a", a, kFloats, {"..."});
    visitor.In("b", b, kFloats, {"..."});
    visitor.Out("out", out, kFloats, {"..."});
  }
  Status Validate() const { return {}; }
};

// Picks the device of a. Called by the stream, after Validate().
Status Run(const Forward& params);

Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);

// In float64; the output is a float64 tensor.
Status RunReference(const Forward& params);

}  // namespace varlen::add
