#pragma once

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The gated linear unit of Llama (Shazeer 2020), element by element, with sig the logistic
// function:
//   y = gate sig(gate) up
//   d_up = dy gate sig(gate);   d_gate = dy up sig(gate) (1 + gate (1 - sig(gate)))
// Only gate and up are kept for the backward pass.
namespace varlen::swiglu {

struct Forward {
  static constexpr const char* kName = "swiglu";
  static constexpr bool kOnGpu = true;

  Tensor gate, up;  // [...]
  Tensor out;       // [...], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("gate", gate, kFloats, {"..."});
    visitor.In("up", up, kFloats, {"..."});
    visitor.Out("out", out, kFloats, {"..."});
  }
  Status Validate() const { return {}; }
};

struct Backward {
  static constexpr const char* kName = "swigluBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;         // [...]
  Tensor gate, up;      // [...]
  Tensor d_gate, d_up;  // [...], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"..."});
    visitor.In("gate", gate, kFloats, {"..."});
    visitor.In("up", up, kFloats, {"..."});
    visitor.Out("dGate", d_gate, kFloats, {"..."});
    visitor.Out("dUp", d_up, kFloats, {"..."});
  }
  Status Validate() const { return {}; }
};

// Picks the device of gate. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64, straight from the formulas; outputs are float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::swiglu
