#include "ops/add/add.h"

namespace varlen::add {

Status Run(const Forward& params) {
  return params.a.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::add
