#include "ops/sampling/sampling.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::sampling {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "logits", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }

}  // namespace varlen::sampling
