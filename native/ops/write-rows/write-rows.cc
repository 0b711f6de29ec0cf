#include "ops/write-rows/write-rows.h"

#include <string>

#include "core/index_check.h"

namespace varlen::write_rows {

Status Forward::Validate() const {
  if (target.size() != 1 || target[0].rank != 2) {
    return Invalid(Code::kShape, "target", "has the wrong rank",
                   target.size() == 1 ? std::to_string(target[0].rank) + " dimensions"
                                      : std::to_string(target.size()) + " tensors",
                   "[numRows, width]");
  }
  const Tensor& matrix = target[0];
  if (matrix.dtype != values.dtype) {
    return Invalid(Code::kDType, "values", "must have the dtype of target", NameOf(values.dtype),
                   NameOf(matrix.dtype));
  }
  if (matrix.shape[1] != values.shape[1]) {
    return Invalid(Code::kShape, "values", "must be as wide as target",
                   std::to_string(values.shape[1]), std::to_string(matrix.shape[1]));
  }
  return rows.on_host() ? CheckIndices("rows", rows, matrix.shape[0]) : Status{};
}

Status Run(const Forward& params) {
  const Tensor& matrix = params.target[0];
  if (matrix.device.kind == DeviceKind::kCuda) return RunCuda(params);
  if (!params.rows.on_host()) {
    Status status = CheckIndices("rows", params.rows, matrix.shape[0]);
    if (!status.ok()) return status;
  }
  return RunCpu(params);
}

}  // namespace varlen::write_rows
