#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Root-mean-square normalisation of the last dimension (Zhang and Sennrich 2019), with the residual
// addition before it fused in. Per row, with w0 in {0, 1} (Gemma stores w - 1):
//
//   h = x + residual;   s = 1 / sqrt(mean(h^2) + eps);   y = (w + w0) h s
//   g = dy (w + w0);    dx = s (g - h s^2 mean(g h)) + dh;   dw = sum over the rows of dy h s
//
// dh is the gradient of h, which the layers after it read too; x and residual have one gradient.
// h is rounded to the storage type before it is normalised: it is what the next layer sees.
namespace varlen::rms_norm {

struct Forward {
  static constexpr const char* kName = "rmsNorm";
  static constexpr bool kOnGpu = true;

  Tensor x;         // [..., hidden]
  Tensor residual;  // [..., hidden], optional
  Tensor weight;    // [hidden]
  float eps = 1e-6f;
  float weight_offset = 0;  // w0
  Tensor out;               // [..., hidden], out
  Tensor scale;             // [...] float32, s, out
  Tensor sum;               // [..., hidden], h, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("x", x, kFloats, {"...", "hidden"});
    visitor.In("residual", residual, kFloats, {"...", "hidden"}, Layout::kContiguous,
               Need::kOptional);
    visitor.In("weight", weight, kFloats, {"hidden"});
    visitor.Scalar("eps", eps);
    visitor.Scalar("weightOffset", weight_offset);
    visitor.Out("out", out, kFloats, {"...", "hidden"});
    visitor.Out("scale", scale, kFloat32, {"..."});
    visitor.Out("sum", sum, kFloats, {"...", "hidden"}, static_cast<bool>(residual));
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "rmsNormBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;   // [..., hidden]
  Tensor d_sum;   // [..., hidden], dh, optional
  Tensor sum;     // [..., hidden], h
  Tensor weight;  // [hidden]
  Tensor scale;   // [...] float32
  float weight_offset = 0;
  Tensor dx;        // [..., hidden], out
  Tensor d_weight;  // [hidden] float32, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"...", "hidden"});
    visitor.In("dSum", d_sum, kFloats, {"...", "hidden"}, Layout::kContiguous, Need::kOptional);
    visitor.In("sum", sum, kFloats, {"...", "hidden"});
    visitor.In("weight", weight, kFloats, {"hidden"});
    visitor.In("scale", scale, kFloat32, {"..."});
    visitor.Scalar("weightOffset", weight_offset);
    visitor.Out("dx", dx, kFloats, {"...", "hidden"});
    visitor.Out("dWeight", d_weight, kFloat32, {"hidden"});
  }
  Status Validate() const;
};

// Picks the device of weight. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64, straight from the formulas; outputs are float64 tensors. The forward
// rounds h as the op does.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::rms_norm
