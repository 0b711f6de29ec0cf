#include "ops/embedding/embedding.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::embedding {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "weight", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::embedding
