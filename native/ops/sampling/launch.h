#pragma once

#include "ops/sampling/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a cudaStream_t,
// `multiprocessors` the device's.
namespace varlen::sampling {

// Also counts rows without a distribution, into found [2] (DeviceBadRows).
template <class T>
int LaunchSample(int multiprocessors, const typename DeviceSample<T>::Params& params, double* found,
                 void* stream);

}  // namespace varlen::sampling
