#pragma once

#include "core/column-sums-device.h"
#include "core/cuda/copy-device.h"
#include "core/cuda/kernel.h"
#include "core/offsets-device.h"
#include "core/token-chains-device.h"

namespace varlen::cuda {

// Kernels of no op, or of several.
using CoreKernels =
    KernelList<DeviceCopy, DeviceOffsetsClamp, DeviceColumnTotals, DeviceTokenChains>;

}  // namespace varlen::cuda
