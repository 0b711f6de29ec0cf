// Bytes per second beside a copy that reads and writes as much: the logits once forward; logits and
// their gradient backward.
//   varlen_bench_cross-entropy [--quick] [--threads N] [--case TEXT]
#include "core/op_bench.h"
#include "ops/cross-entropy/cross-entropy.h"

int main(int argc, char** argv) {
  using namespace varlen;
  using namespace varlen::cross_entropy;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 256, kVocab = 32768;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Forward forward;
    forward.logits = testing::Random(dtype, {kTokens, kVocab}, 1);
    std::vector<int32_t> targets;
    for (int64_t t = 0; t < kTokens; ++t) targets.push_back(static_cast<int32_t>(t * 31 % kVocab));
    forward.tokens.target_ids = testing::Host(targets);
    testing::MakeOutputs make;
    forward.Visit(make);
    const std::string name = "t256-v32768-" + std::string(NameOf(dtype));
    const int64_t bytes = kTokens * kVocab * SizeOf(dtype);
    bench::MeasureBytes(flags, name, forward, bytes);
    Backward backward;
    backward.upstream.d_loss = testing::FromValues(DType::kF32, {}, {1});
    backward.upstream.lse = forward.out.lse;
    backward.upstream.entropies = forward.out.entropies;
    if (!Run(forward).ok()) return 1;
    backward.logits = forward.logits;
    backward.tokens = forward.tokens;
    bench::MeasureBytes(flags, name, backward, 2 * bytes);
  }
}
