#include "ops/swiglu/swiglu.h"

namespace varlen::swiglu {
namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params) {
  return params.gate.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::swiglu
