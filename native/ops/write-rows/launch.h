#pragma once

#include "ops/write-rows/device.h"

// The launches of this op. Each returns a cudaError_t; `stream` is a
// cudaStream_t, `multiprocessors` the device's.
namespace varlen::write_rows {

// Before the rows.
int LaunchChains(int multiprocessors, const DeviceTokenChains::Params& params, void* stream);
template <class T>
int LaunchWriteRows(int multiprocessors, const typename DeviceWriteRows<T>::Params& params,
                    void* stream);

}  // namespace varlen::write_rows
