#include "core/simt/launch-capped.cuh"
#include "ops/grad-clip/launch.h"

namespace varlen::grad_clip {

int LaunchSquares(int multiprocessors, const DeviceSquares::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceSquares>(multiprocessors, params.pieces.count, params,
                                           static_cast<cudaStream_t>(stream));
}

int LaunchNorm(int multiprocessors, const DeviceNorm::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceNorm>(multiprocessors, 1, params,
                                        static_cast<cudaStream_t>(stream));
}

int LaunchClip(int multiprocessors, const DeviceClip::Params& params, void* stream) {
  return simt::LaunchCapped<DeviceClip>(multiprocessors, params.pieces.count, params,
                                        static_cast<cudaStream_t>(stream));
}

}  // namespace varlen::grad_clip
