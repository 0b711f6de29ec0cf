#include "core/op_bench.h"
#include "ops/write-rows/write-rows.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 8192, kRows = 131072, kWidth = 256;
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < kTokens; ++t) rows.push_back(static_cast<int32_t>(t * 7919 % kRows));
  write_rows::Forward forward;
  forward.target = {testing::Random(DType::kF32, {kRows, kWidth}, 1)};
  forward.rows = testing::Host(rows);
  forward.values = testing::Random(DType::kF32, {kTokens, kWidth}, 2);
  bench::MeasureBytes(flags, "forward-float32", forward, 2 * kTokens * kWidth * 4);
}
