#pragma once

#include "core/linear-logits-passes.h"
#include "ops/policy-loss-from-hidden/device.h"

// The launches of this op's tiles; the loss between them is core/loss/cuda.h. Each returns a
// cudaError_t. `stream` is a cudaStream_t, `multiprocessors` the device's; the workspace is that of
// LinearWorkspace::Forward or ::Backward.
namespace varlen::policy_loss_from_hidden {

// Also counts targets outside the vocabulary, into found [2] (DeviceTargetCheck).
template <class T>
int LaunchRowStatistics(int multiprocessors, const DeviceLinearLogits<T>& head,
                        const uint8_t* loss_mask, const LossRowSink& sink, double* found,
                        const LinearWorkspace<T>& workspace, void* stream);
template <class T>
int LaunchGradients(int multiprocessors, const DeviceLinearLogits<T>& head, const RowSource& source,
                    const double* lse, const DeviceLinearGradients<T>& gradients,
                    const LinearWorkspace<T>& workspace, void* stream);

}  // namespace varlen::policy_loss_from_hidden
