#include "core/simt/launch-capped.cuh"
#include "ops/adamw/launch.h"

namespace varlen::adamw {

int LaunchStep(int multiprocessors, const DeviceStep::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceStep>(multiprocessors, params.pieces.count, params,
                                        static_cast<cudaStream_t>(stream));
}

}  // namespace varlen::adamw
