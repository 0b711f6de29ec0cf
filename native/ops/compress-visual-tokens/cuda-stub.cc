#include "ops/compress-visual-tokens/compress-visual-tokens.h"

// Stands in for the CUDA file in a build without it.
namespace varlen::compress_visual_tokens {

Status RunCuda(const Forward&) {
  return {Code::kNoCuda, "features", "is on a CUDA device and this build has no CUDA kernels", {}};
}

}  // namespace varlen::compress_visual_tokens
