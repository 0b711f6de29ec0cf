#include "ops/generalized-jsd/generalized-jsd.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::generalized_jsd {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "student", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::generalized_jsd
