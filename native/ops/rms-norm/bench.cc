#include "core/op_bench.h"
#include "ops/rms-norm/rms-norm.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 8192, kHidden = 256, kBytes = kTokens * kHidden * 4;
  rms_norm::Forward forward;
  forward.x = testing::Random(DType::kF32, {kTokens, kHidden}, 1);
  forward.residual = testing::Random(DType::kF32, {kTokens, kHidden}, 2);
  forward.weight = testing::Random(DType::kF32, {kHidden}, 3);
  bench::MeasureBytes(flags, "forward-residual-float32", forward, 4 * kBytes);
  const std::vector<Tensor> results = testing::Outputs(forward);
  rms_norm::Backward backward;
  backward.d_out = testing::Random(DType::kF32, {kTokens, kHidden}, 4);
  backward.d_sum = forward.residual;
  backward.sum = results[2];
  backward.weight = forward.weight;
  backward.scale = results[1];
  bench::MeasureBytes(flags, "backward-residual-float32", backward, 4 * kBytes);
}
