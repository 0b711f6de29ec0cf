#include "ops/embedding/embedding.h"

#include <string>

#include "core/index_check.h"

namespace varlen::embedding {
namespace {

Status CheckOnHost(const HostOrTensor<int32_t>& ids, const Tensor& weight) {
  return ids.on_host() ? CheckIndices("ids", ids, weight.shape[0]) : Status{};
}

template <class Params>
Status RunOnDeviceOf(const Params& params) {
  if (params.weight.device.kind == DeviceKind::kCuda) return RunCuda(params);
  if (!params.ids.on_host()) {
    Status status = CheckIndices("ids", params.ids, params.weight.shape[0]);
    if (!status.ok()) return status;
  }
  return RunCpu(params);
}

}  // namespace

Status Forward::Validate() const { return CheckOnHost(ids, weight); }

Status Backward::Validate() const {
  if (d_out.shape[0] != ids.size()) {
    return Invalid(Code::kShape, "ids", "must have one entry per row of dOut",
                   std::to_string(ids.size()), std::to_string(d_out.shape[0]));
  }
  return CheckOnHost(ids, weight);
}

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::embedding
