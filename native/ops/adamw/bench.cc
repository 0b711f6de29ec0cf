#include "core/op_bench.h"
#include "ops/adamw/adamw.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTensors = 50, kSize = 200'000;
  adamw::Forward op;
  for (uint32_t n = 0; n < kTensors; ++n) {
    op.gradients.push_back(testing::Random(DType::kF32, {kSize}, 4 * n));
    op.parameters.push_back(testing::Random(DType::kF32, {kSize}, 4 * n + 1));
    op.exp_avg.push_back(testing::Random(DType::kF32, {kSize}, 4 * n + 2));
    op.exp_avg_sq.push_back(
        testing::FromValues(DType::kF32, {kSize}, std::vector<double>(kSize, 1)));
  }
  // Reads g, p, m, v; writes p, m, v.
  bench::MeasureBytes(flags, "float32-10M", op, 7 * kTensors * kSize * 4);
}
