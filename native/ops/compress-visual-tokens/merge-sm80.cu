#include "core/cuda/link.cuh"
#include "ops/compress-visual-tokens/device.h"

namespace varlen::compress_visual_tokens {
namespace {
[[maybe_unused]] const bool linked[] = {cuda::LinkDevice(MetricKernels{}),
                                        cuda::LinkDevice(ImageKernels{}),
                                        cuda::LinkDevice(FeatureKernels{})};
}
}  // namespace varlen::compress_visual_tokens
