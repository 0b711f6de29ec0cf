#include "ops/rms-norm/rms-norm.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::rms_norm {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "x", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::rms_norm
