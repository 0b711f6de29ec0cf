#pragma once

#include "core/cuda/kernel.h"
#include "core/loss/device.h"

namespace varlen::loss {

using Sm80Kernels =
    cuda::KernelList<DeviceRatios, DeviceSequences, DeviceSums<float>, DeviceSums<bfloat16>,
                     DeviceSums<half>, DeviceLosses<float>, DeviceLosses<bfloat16>,
                     DeviceLosses<half>, DeviceTotals<float>, DeviceTotals<bfloat16>,
                     DeviceTotals<half>, DeviceScale<float>, DeviceScale<bfloat16>,
                     DeviceScale<half>>;

}  // namespace varlen::loss
