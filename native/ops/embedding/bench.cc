#include "core/op_bench.h"
#include "ops/embedding/embedding.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 8192, kVocabSize = 32000, kHidden = 256;
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < kTokens; ++t) ids.push_back(static_cast<int32_t>(t * 7919 % kVocabSize));
  embedding::Forward forward;
  forward.weight = testing::Random(DType::kF32, {kVocabSize, kHidden}, 1);
  forward.ids = testing::Host(ids);
  bench::MeasureBytes(flags, "forward-float32", forward, 2 * kTokens * kHidden * 4);
  embedding::Backward backward;
  backward.d_out = testing::Random(DType::kF32, {kTokens, kHidden}, 2);
  backward.weight = forward.weight;
  backward.ids = forward.ids;
  bench::MeasureBytes(flags, "backward-float32", backward, (kTokens + kVocabSize) * kHidden * 4);
}
