#include "ops/rope/rope.h"

#include <string>

#include "core/index_check.h"

namespace varlen::rope {

Status Rotation::Validate(const Tensor& rows) const {
  const int64_t rotary_dim = table.shape[1], head_dim = rows.shape[2];
  if (rotary_dim % 2 != 0 || rotary_dim > head_dim) {
    return Invalid(Code::kShape, "table", "must have an even number of columns, one per dimension",
                   std::to_string(rotary_dim), "an even number <= " + std::to_string(head_dim));
  }
  if (position_ids.size() != rows.shape[0]) {
    return Invalid(Code::kShape, "positionIds", "must have one entry per token",
                   std::to_string(position_ids.size()), std::to_string(rows.shape[0]));
  }
  if (!position_ids.on_host()) return {};
  return CheckIndices("positionIds", position_ids, table.shape[0]);
}

namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params) {
  const Rotation& rotation = params.rotation;
  if (rotation.table.device.kind == DeviceKind::kCuda) return RunCuda(params);
  if (!rotation.position_ids.on_host()) {
    Status status = CheckIndices("positionIds", rotation.position_ids, rotation.table.shape[0]);
    if (!status.ok()) return status;
  }
  return RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::rope
