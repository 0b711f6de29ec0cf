#include "ops/sparse-prefill/sparse-prefill.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::sparse_prefill {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "q", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }
Status RunCuda(const Rebalance&) { return NoCuda(); }
Status RunCuda(const Plan&) { return NoCuda(); }
Status RunCuda(const Merge&) { return NoCuda(); }

}  // namespace varlen::sparse_prefill
