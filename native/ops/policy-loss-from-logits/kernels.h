#pragma once

#include "core/cuda/kernel.h"
#include "core/row-softmax-device.h"

namespace varlen::policy_loss_from_logits {

template <class T>
using LossRows = DeviceRowStatistics<T, LossRowSink>;
template <class T>
using RowGradients = DeviceRowGradients<T, LossRowGradients>;

using Sm80Kernels =
    cuda::KernelList<DeviceTargetCheck, LossRows<float>, LossRows<bfloat16>, LossRows<half>,
                     RowGradients<float>, RowGradients<bfloat16>, RowGradients<half>>;

}  // namespace varlen::policy_loss_from_logits
