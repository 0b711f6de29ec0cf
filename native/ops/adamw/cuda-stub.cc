#include "ops/adamw/adamw.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::adamw {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "gradients", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }

}  // namespace varlen::adamw
