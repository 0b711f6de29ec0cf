#pragma once

#include "ops/adamw/device.h"

// The launch of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::adamw {

int LaunchStep(int multiprocessors, const DeviceStep::Params& params, void* stream);

}  // namespace varlen::adamw
