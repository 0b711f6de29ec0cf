#include "ops/varlen-attention/varlen-attention.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::varlen_attention {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "q", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::varlen_attention
