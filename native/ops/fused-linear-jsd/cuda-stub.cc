#include "ops/fused-linear-jsd/fused-linear-jsd.h"

// There is no CUDA kernel of this op yet.
namespace varlen::fused_linear_jsd {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "hidden", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::fused_linear_jsd
