#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Rows of a matrix that lives on, replaced in place: target[rows[t]] = values[t], in the order of
// t. The inverse of embedding; how new keys and values enter the slots of a KV cache.
namespace varlen::write_rows {

struct Forward {
  static constexpr const char* kName = "writeRows";
  static constexpr bool kOnGpu = true;

  std::vector<Tensor> target;  // one tensor, [numRows, ...width], updated
  HostOrTensor<int32_t> rows;  // [totalTokens], each in [0, numRows)
  Tensor values;               // [totalTokens, width], dtype of target

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.Tensors("target", target, kFloats, Access::kUpdate);
    visitor.HostOrTensor("rows", rows, {"totalTokens"}, Need::kRequired);
    visitor.In("values", values, kFloats, {"totalTokens", "width"});
  }
  Status Validate() const;
};

// Picks the device of target. Called by the stream, after Validate().
Status Run(const Forward& params);
Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);
// The target becomes a float64 tensor.
Status RunReference(const Forward& params);

}  // namespace varlen::write_rows
