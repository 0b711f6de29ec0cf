#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Rows of a table, chosen by number: out[t] = weight[ids[t]], and its gradient
// d_weight[v] = sum of d_out[t] over the t with ids[t] = v, in the order of t, in float32.
namespace varlen::embedding {

struct Forward {
  static constexpr const char* kName = "embedding";
  static constexpr bool kOnGpu = true;

  Tensor weight;              // [vocabSize, hidden]
  HostOrTensor<int32_t> ids;  // [totalTokens], each in [0, vocabSize)
  Tensor out;                 // [totalTokens, hidden], out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("weight", weight, kFloats, {"vocabSize", "hidden"});
    visitor.HostOrTensor("ids", ids, {"totalTokens"}, Need::kRequired);
    visitor.Out("out", out, kFloats, {"totalTokens", "hidden"});
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "embeddingBackward";
  static constexpr bool kOnGpu = true;

  Tensor d_out;               // [totalTokens, hidden]
  Tensor weight;              // [vocabSize, hidden]; its shape alone is read
  HostOrTensor<int32_t> ids;  // [totalTokens]
  Tensor d_weight;            // [vocabSize, hidden] float32, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.In("dOut", d_out, kFloats, {"totalTokens", "hidden"});
    visitor.In("weight", weight, kFloats, {"vocabSize", "hidden"});
    visitor.HostOrTensor("ids", ids, {"totalTokens"}, Need::kRequired);
    visitor.Out("dWeight", d_weight, kFloat32, {"vocabSize", "hidden"});
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

// Everything in float64, straight from the formulas; outputs are float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::embedding
