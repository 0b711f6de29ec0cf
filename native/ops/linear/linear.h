#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// y = x W^T + b over all leading dimensions of x, and its gradients
//   dx = dy W;   dW = dy^T x;   db = sum of dy over the rows
// W is stored as [outFeatures, inFeatures]. Sums are float32; the gradients of the parameters stay
// float32 whatever the storage type. A row of y depends on its own row of x alone, to the bit but
// for cuBLASLt.
namespace varlen::linear {

struct Forward {
  static constexpr const char* kName = "linear";
  static constexpr bool kOnGpu = true;

  Tensor x;       // [..., inFeatures]
  Tensor weight;  // [outFeatures, inFeatures]
  Tensor bias;    // [outFeatures], optional
  Tensor out;     // [..., outFeatures], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("x", x, kFloats, {"...", "inFeatures"});
    visitor.In("weight", weight, kFloats, {"outFeatures", "inFeatures"});
    visitor.In("bias", bias, kFloats, {"outFeatures"}, Layout::kContiguous, Need::kOptional);
    visitor.Out("out", out, kFloats, {"...", "outFeatures"});
  }
  Status Validate() const { return {}; }
};

struct Backward {
  static constexpr const char* kName = "linearBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;   // [..., outFeatures]
  Tensor x;       // [..., inFeatures]
  Tensor weight;  // [outFeatures, inFeatures]
  bool want_x = true, want_weight = true, want_bias = true;
  Tensor dx;        // [..., inFeatures], out
  Tensor d_weight;  // [outFeatures, inFeatures] float32, out
  Tensor d_bias;    // [outFeatures] float32, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"...", "outFeatures"});
    visitor.In("x", x, kFloats, {"...", "inFeatures"});
    visitor.In("weight", weight, kFloats, {"outFeatures", "inFeatures"});
    visitor.Flag("wantX", want_x);
    visitor.Flag("wantWeight", want_weight);
    visitor.Flag("wantBias", want_bias);
    visitor.Out("dx", dx, kFloats, {"...", "inFeatures"}, want_x);
    visitor.Out("dWeight", d_weight, kFloat32, {"outFeatures", "inFeatures"}, want_weight);
    visitor.Out("dBias", d_bias, kFloat32, {"outFeatures"}, want_bias);
  }
  Status Validate() const { return {}; }
};

// Picks the device of x. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64, straight from the formulas; outputs are float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::linear
