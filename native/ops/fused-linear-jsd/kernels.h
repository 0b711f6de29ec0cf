#pragma once

#include "core/cuda/kernel.h"
#include "ops/fused-linear-jsd/device.h"

namespace varlen::fused_linear_jsd {

// Beside those of core/jsd-kernels.h and core/linear-logits-kernels.h.
using Sm80Kernels =
    cuda::KernelList<DeviceLogitRows<float>, DeviceLogitRows<bfloat16>, DeviceLogitRows<half>,
                     DeviceNarrowRows<float>, DeviceNarrowRows<bfloat16>, DeviceNarrowRows<half>,
                     DeviceRowOrder<GradientFilter<RowBounds>>, DeviceGradientScale<RowBounds>>;

}  // namespace varlen::fused_linear_jsd
