#include "ops/group-advantage/group-advantage.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::group_advantage {

Status RunCuda(const Forward&) {
  return {Code::kNoCuda, "rewards", "is on a CUDA device and this build has no CUDA kernels", {}};
}

}  // namespace varlen::group_advantage
