#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

#include <cmath>
#include <string>

namespace varlen::policy_loss_from_hidden {

Status Options::Validate(int64_t total_tokens) const {
  if (target_ids.size() != total_tokens) {
    return Invalid(Code::kShape, "targetIds", "must have one entry per token",
                   std::to_string(target_ids.size()), std::to_string(total_tokens));
  }
  if (!(temperature > 0) || std::isinf(temperature)) {
    return Invalid(Code::kRange, "temperature", "is out of range", std::to_string(temperature),
                   "a finite number above 0");
  }
  if (!(softcap >= 0) || std::isinf(softcap)) {
    return Invalid(Code::kRange, "softcap", "is out of range", std::to_string(softcap),
                   "a finite number >= 0 (0 turns it off)");
  }
  return {};
}

Status Forward::Validate() const {
  Status status = options.Validate(head.total_tokens());
  if (status.ok()) status = shard.Validate(head.vocab_size(), head.hidden.device);
  return status.ok() ? batch.Validate(config, head.total_tokens()) : status;
}
Status Backward::Validate() const {
  Status status = options.Validate(head.total_tokens());
  if (status.ok()) status = shard.Validate(head.vocab_size(), head.hidden.device);
  if (!status.ok() || tile_filter == 0) return status;
  if (!(tile_filter > 0 && tile_filter < 1)) {
    return Invalid(Code::kRange, "tileFilter", "is out of range", std::to_string(tile_filter),
                   "at least 0 (0 turns it off) and below 1");
  }
  if (head.hidden.device.kind != DeviceKind::kCuda) return {};
  return {Code::kUnsupported, "tileFilter", "has no CUDA kernel", {}};
}

Status ActiveRows(const Options& options, const Tensor& loss_mask, int64_t total_tokens,
                  int64_t vocab_size, std::vector<int32_t>* rows, std::vector<int32_t>* targets) {
  const int32_t* ids = options.target_ids.data();
  const uint8_t* mask = loss_mask ? loss_mask.data<uint8_t>() : nullptr;
  for (int64_t row = 0; row < total_tokens; ++row) {
    if (mask != nullptr && mask[row] == 0) continue;
    if (ids[row] < 0 || ids[row] >= vocab_size) {
      Status status =
          Invalid(Code::kIndex, "targetIds", "is outside the vocabulary",
                  "targetIds[" + std::to_string(row) + "] = " + std::to_string(ids[row]),
                  "0.." + std::to_string(vocab_size - 1) + ", or lossMask 0");
      status.details = {{"row", static_cast<double>(row)}};
      return status;
    }
    rows->push_back(static_cast<int32_t>(row));
    targets->push_back(ids[row]);
  }
  return {};
}

Status Run(const Forward& params) {
  if (params.head.hidden.device.kind == DeviceKind::kCuda) return RunCuda(params);
  const Status status = params.batch.ValidateInStream(params.head.total_tokens());
  return status.ok() ? RunCpu(params) : status;
}
Status Run(const Backward& params) {
  return params.head.hidden.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::policy_loss_from_hidden
