#include "core/cuda/fake/link.h"
#include "core/jsd-kernels.h"

namespace varlen::jsd {
namespace {
[[maybe_unused]] const bool linked =
    cuda::LinkEmulated(ForwardKernels{}) && cuda::LinkEmulated(BackwardKernels{}) &&
    cuda::LinkEmulated(WordKernels<float>{}) && cuda::LinkEmulated(WordKernels<bfloat16>{}) &&
    cuda::LinkEmulated(WordKernels<half>{});
}
}  // namespace varlen::jsd
