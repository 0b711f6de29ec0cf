#pragma once

#include "core/cross-entropy-device.h"

// The launches of this op's kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's.
namespace varlen::cross_entropy {

template <class T>
using Rows = DeviceRowStatistics<T, CrossEntropySink>;
template <class T>
using Gradients = DeviceRowGradients<T, CrossEntropySource>;

// Also counts targets outside the vocabulary, into check.found.
template <class T>
int LaunchForward(int multiprocessors, const typename Rows<T>::Params& rows,
                  const DeviceTargetCheck::Params& check, const CrossEntropyTotals::Params& totals,
                  void* stream);
template <class T>
int LaunchBackward(int multiprocessors, const CrossEntropyTotals::Params& totals,
                   const typename Gradients<T>::Params& gradients, void* stream);

}  // namespace varlen::cross_entropy
