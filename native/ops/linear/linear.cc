#include "ops/linear/linear.h"

namespace varlen::linear {
namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params) {
  return params.x.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::linear
