#pragma once

#include "core/cross-entropy-device.h"
#include "core/linear-logits-passes.h"

// The launches of this op's kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's; the workspace is that of LinearWorkspace::Forward or ::Backward.
namespace varlen::cross_entropy_from_hidden {

// Tokens count where totals.mask and totals.weights say so. Also counts targets outside the
// vocabulary, into found [2] (DeviceTargetCheck).
template <class T>
int LaunchForward(int multiprocessors, const DeviceLinearLogits<T>& head,
                  const CrossEntropySink& sink, const CrossEntropyTotals::Params& totals,
                  double* found, const LinearWorkspace<T>& workspace, void* stream);
template <class T>
int LaunchBackward(int multiprocessors, const CrossEntropyTotals::Params& totals,
                   const DeviceLinearLogits<T>& head, const CrossEntropySource& source,
                   const DeviceLinearGradients<T>& gradients, const LinearWorkspace<T>& workspace,
                   void* stream);

}  // namespace varlen::cross_entropy_from_hidden
