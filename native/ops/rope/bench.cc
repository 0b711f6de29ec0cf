#include "core/op_bench.h"
#include "ops/rope/rope.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 8192, kHeads = 4, kHeadDim = 64, kPositions = 1024;
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < kTokens; ++t) positions.push_back(static_cast<int32_t>(t % kPositions));
  rope::Forward op;
  op.x = testing::Random(DType::kF32, {kTokens, kHeads, kHeadDim}, 1);
  op.rotation.table = testing::Random(DType::kF32, {kPositions, kHeadDim}, 2);
  op.rotation.position_ids = testing::Host(positions);
  bench::MeasureBytes(flags, "forward-float32", op, 2 * kTokens * kHeads * kHeadDim * 4);
}
