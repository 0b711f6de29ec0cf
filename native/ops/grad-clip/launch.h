#pragma once

#include "ops/grad-clip/device.h"

// The launches of this op, in their order. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::grad_clip {

int LaunchSquares(int multiprocessors, const DeviceSquares::Params& params, void* stream);
int LaunchNorm(int multiprocessors, const DeviceNorm::Params& params, void* stream);
int LaunchClip(int multiprocessors, const DeviceClip::Params& params, void* stream);

}  // namespace varlen::grad_clip
