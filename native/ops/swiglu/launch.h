#pragma once

#include "ops/swiglu/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::swiglu {

template <class T>
int LaunchGate(int multiprocessors, const typename DeviceGate<T>::Params& params, void* stream);
template <class T>
int LaunchGateGradients(int multiprocessors, const typename DeviceGateGradients<T>::Params& params,
                        void* stream);

}  // namespace varlen::swiglu
