#pragma once

#include "core/cuda/kernel.h"
#include "ops/cross-entropy/device.h"

namespace varlen::cross_entropy {

using Sm80Kernels =
    cuda::KernelList<DeviceTargetCheck, Totals, Rows<float>, Rows<bfloat16>, Rows<half>,
                     Gradients<float>, Gradients<bfloat16>, Gradients<half>>;

}  // namespace varlen::cross_entropy
