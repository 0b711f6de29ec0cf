#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Rotary position embedding (Su et al. 2021). With R <= headDim the rotated dimensions, c and s the
// cosines and sines of the token's position, and (x1, x2) a pair of dimensions:
//
//   y1 = x1 c - x2 s;   y2 = x2 c + x1 s
//
// Half-split pairs (i, i + R/2), as Llama's; interleaved pairs (2i, 2i + 1), as GPT-J's. Dimensions
// past R pass through. The gradient is the rotation back: s -> -s. The table is built on the host
// in float64, with whatever scaling the model asks for, and kept in float32:
// table[p] = cos(p f_0), ..., cos(p f_(R/2-1)), sin(p f_0), ..., sin(p f_(R/2-1)).
namespace varlen::rope {

// What both passes share.
struct Rotation {
  Tensor table;                        // [maxPositions, rotaryDim] float32
  HostOrTensor<int32_t> position_ids;  // [totalTokens], each in [0, maxPositions)
  bool interleaved = false;

  Status Validate(const Tensor& rows) const;

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("table", table, kFloat32, {"maxPositions", "rotaryDim"});
    visitor.HostOrTensor("positionIds", position_ids, {"totalTokens"}, Need::kRequired);
    visitor.Flag("interleaved", interleaved);
  }
};

struct Forward {
  static constexpr const char* kName = "rope";
  static constexpr bool kOnGpu = true;

  Tensor x;  // [totalTokens, numHeads, headDim]
  Rotation rotation;
  Tensor out;  // [totalTokens, numHeads, headDim], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("x", x, kFloats, {"totalTokens", "numHeads", "headDim"}, Layout::kRows);
    rotation.Visit(visitor);
    visitor.Out("out", out, kFloats, {"totalTokens", "numHeads", "headDim"});
  }
  Status Validate() const { return rotation.Validate(x); }
};

struct Backward {
  static constexpr const char* kName = "ropeBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;  // [totalTokens, numHeads, headDim]
  Rotation rotation;
  Tensor dx;  // [totalTokens, numHeads, headDim], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"totalTokens", "numHeads", "headDim"}, Layout::kRows);
    rotation.Visit(visitor);
    visitor.Out("dx", dx, kFloats, {"totalTokens", "numHeads", "headDim"});
  }
  Status Validate() const { return rotation.Validate(d_out); }
};

// Picks the device of the table. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64, straight from the formulas; outputs are float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::rope
