#pragma once

#include "ops/rope/device.h"

// The launch of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::rope {

template <class T>
int LaunchRotate(int multiprocessors, const typename DeviceRotate<T>::Params& params, void* stream);

}  // namespace varlen::rope
