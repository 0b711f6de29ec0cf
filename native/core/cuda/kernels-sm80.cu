#include "core/cuda/copy-device.h"
#include "core/cuda/link.cuh"
#include "core/offsets-device.h"

namespace varlen::cuda {
namespace {
[[maybe_unused]] const bool linked = LinkDevice(CopyKernels{}) && LinkDevice(OffsetsKernels{});
}
}  // namespace varlen::cuda
