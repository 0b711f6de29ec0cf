#include "ops/swiglu/swiglu.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::swiglu {
namespace {
Status NoCuda() {
  return {Code::kNoCuda, "gate", "is on a CUDA device and this build has no CUDA kernels", {}};
}
}  // namespace

Status RunCuda(const Forward&) { return NoCuda(); }
Status RunCuda(const Backward&) { return NoCuda(); }

}  // namespace varlen::swiglu
