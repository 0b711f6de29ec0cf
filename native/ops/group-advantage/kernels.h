#pragma once

#include "core/cuda/kernel.h"
#include "ops/group-advantage/device.h"

namespace varlen::group_advantage {

using Sm80Kernels = cuda::KernelList<GroupAdvantage>;

}  // namespace varlen::group_advantage
