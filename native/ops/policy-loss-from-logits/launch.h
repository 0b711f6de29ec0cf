#pragma once

#include "core/row-softmax-device.h"

// The launches of this op's row kernels; the loss between them is core/loss/launch.h. Each returns
// a cudaError_t. `stream` is a cudaStream_t, `multiprocessors` the device's.
namespace varlen::policy_loss_from_logits {

template <class T>
using LossRows = DeviceRowStatistics<T, LossRowSink>;
template <class T>
using RowGradients = DeviceRowGradients<T, LossRowGradients>;

// Also counts targets outside the vocabulary, into check.found.
template <class T>
int LaunchRowStatistics(int multiprocessors, const typename LossRows<T>::Params& params,
                        const DeviceTargetCheck::Params& check, void* stream);
template <class T>
int LaunchRowGradients(int multiprocessors, const typename RowGradients<T>::Params& params,
                       void* stream);

}  // namespace varlen::policy_loss_from_logits
