#include "core/cuda/fake/link.h"
#include "ops/compress-visual-tokens/device.h"

namespace varlen::compress_visual_tokens {
namespace {
[[maybe_unused]] const bool linked[] = {cuda::LinkEmulated(MetricKernels{}),
                                        cuda::LinkEmulated(ImageKernels{}),
                                        cuda::LinkEmulated(FeatureKernels{})};
}
}  // namespace varlen::compress_visual_tokens
