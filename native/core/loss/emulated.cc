#include "core/cuda/fake/link.h"
#include "core/loss/kernels.h"

namespace varlen::loss {
namespace {
[[maybe_unused]] const bool linked = cuda::LinkEmulated(Sm80Kernels{});
}
}  // namespace varlen::loss
