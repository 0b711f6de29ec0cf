#include "core/op_bench.h"
#include "ops/swiglu/swiglu.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kSize = 8192 * 704, kBytes = kSize * 4;
  swiglu::Forward forward;
  forward.gate = testing::Random(DType::kF32, {kSize}, 1);
  forward.up = testing::Random(DType::kF32, {kSize}, 2);
  bench::MeasureBytes(flags, "forward-float32", forward, 3 * kBytes);
  swiglu::Backward backward;
  backward.d_out = testing::Random(DType::kF32, {kSize}, 3);
  backward.gate = forward.gate;
  backward.up = forward.up;
  bench::MeasureBytes(flags, "backward-float32", backward, 5 * kBytes);
}
