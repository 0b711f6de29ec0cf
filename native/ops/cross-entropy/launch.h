#pragma once

#include "ops/cross-entropy/device.h"

// The launches of this op's kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's.
namespace varlen::cross_entropy {

// Also counts targets outside the vocabulary, into check.found.
template <class T>
int LaunchForward(int multiprocessors, const typename Rows<T>::Params& rows,
                  const DeviceTargetCheck::Params& check, const Totals::Params& totals,
                  void* stream);
template <class T>
int LaunchBackward(int multiprocessors, const Totals::Params& totals,
                   const typename Gradients<T>::Params& gradients, void* stream);

}  // namespace varlen::cross_entropy
