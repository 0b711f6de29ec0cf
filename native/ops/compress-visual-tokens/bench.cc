#include "core/op_bench.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kImages = 16, kTokens = 1024, kHidden = 1280;
  compress_visual_tokens::Forward op;
  op.features = testing::Random(DType::kF32, {kImages * kTokens, kHidden}, 1);
  std::vector<int32_t> offsets{0};
  for (int64_t i = 0; i < kImages; ++i) offsets.push_back(static_cast<int32_t>((i + 1) * kTokens));
  op.image_offsets = testing::Host(offsets);
  op.targets = testing::Host(std::vector<int32_t>(kImages, kTokens / 2));
  op.minimums = testing::Host(std::vector<int32_t>(kImages, 1));
  op.out = Tensor::Empty(DType::kF32, {kImages * kTokens / 2, kHidden});
  bench::MeasureBytes(flags, "one-round-float32", op, kImages * kTokens * kHidden * 4);
}
