#pragma once

#include "core/cross-entropy-device.h"
#include "core/cuda/kernel.h"

namespace varlen::cross_entropy {

template <class T>
using Rows = DeviceRowStatistics<T, CrossEntropySink>;
template <class T>
using Gradients = DeviceRowGradients<T, CrossEntropySource>;

using Sm80Kernels =
    cuda::KernelList<DeviceTargetCheck, CrossEntropyTotals, Rows<float>, Rows<bfloat16>, Rows<half>,
                     Gradients<float>, Gradients<bfloat16>, Gradients<half>>;

}  // namespace varlen::cross_entropy
