#include "core/cuda/copy-device.h"
#include "core/cuda/fake/link.h"
#include "core/offsets-device.h"

namespace varlen::cuda {
namespace {
[[maybe_unused]] const bool linked = LinkEmulated(CopyKernels{}) && LinkEmulated(OffsetsKernels{});
}
}  // namespace varlen::cuda
