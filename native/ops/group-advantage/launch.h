#pragma once

#include "ops/group-advantage/device.h"

namespace varlen::group_advantage {

// Returns a cudaError_t. `stream` is a cudaStream_t, `multiprocessors` the device's.
int LaunchGroupAdvantage(int multiprocessors, const GroupAdvantage::Params& params, void* stream);

}  // namespace varlen::group_advantage
