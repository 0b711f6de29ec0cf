#include "ops/write-rows/write-rows.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::write_rows {

Status RunCuda(const Forward&) {
  return {Code::kNoCuda, "target", "is on a CUDA device and this build has no CUDA kernels", {}};
}

}  // namespace varlen::write_rows
