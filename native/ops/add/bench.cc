#include "core/op_bench.h"
#include "ops/add/add.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kSize = 8192 * 256;
  add::Forward op;
  op.a = testing::Random(DType::kF32, {kSize}, 1);
  op.b = testing::Random(DType::kF32, {kSize}, 2);
  bench::MeasureBytes(flags, "forward-float32", op, 3 * kSize * 4);
}
