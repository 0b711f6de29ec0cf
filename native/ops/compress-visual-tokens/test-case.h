#pragma once

#include <cstdint>
#include <vector>

#include "core/op_test.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"

// What the tests of the CPU and of the kernels share.
namespace varlen::compress_visual_tokens::testing {

using namespace varlen::testing;

// Random features of images that begin at `offsets`, to be merged down to `targets` tokens each.
inline Forward Op(DType dtype, const std::vector<int32_t>& offsets, int64_t hidden,
                  const std::vector<int32_t>& targets) {
  Forward op;
  op.features = Random(dtype, {offsets.back(), hidden}, 1);
  op.image_offsets = Host(offsets);
  op.targets = Host(targets);
  op.minimums = Host(std::vector<int32_t>(targets.size(), 0));
  int64_t rows = 0;
  for (int32_t target : targets) rows += target;
  op.out = Tensor::Empty(dtype, {rows, hidden});  // its shape says how many rows there are
  return op;
}

}  // namespace varlen::compress_visual_tokens::testing
