#pragma once

#include "ops/add/device.h"

// The launch of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::add {

template <class T>
int LaunchSum(int multiprocessors, const typename DeviceSum<T>::Params& params, void* stream);

}  // namespace varlen::add
