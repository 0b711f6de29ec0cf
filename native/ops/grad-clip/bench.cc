#include "core/op_bench.h"
#include "ops/grad-clip/grad-clip.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTensors = 50, kSize = 200'000;
  grad_clip::Forward op;
  for (uint32_t n = 0; n < kTensors; ++n) {
    op.gradients.push_back(testing::Random(DType::kF32, {kSize}, n));
  }
  op.max_norm = 1e30;  // measures only: after one step nothing would be scaled any more
  bench::MeasureBytes(flags, "norm-float32-10M", op, kTensors * kSize * 4);
}
