#pragma once

#include "ops/embedding/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::embedding {

template <class T>
int LaunchLookup(int multiprocessors, const typename DeviceLookup<T>::Params& params, void* stream);
// Before the gradients.
int LaunchChains(int multiprocessors, const DeviceTokenChains::Params& params, void* stream);
template <class T>
int LaunchWordGradients(int multiprocessors, const typename DeviceWordGradients<T>::Params& params,
                        void* stream);

}  // namespace varlen::embedding
