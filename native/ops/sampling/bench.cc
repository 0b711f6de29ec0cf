#include "core/op_bench.h"
#include "ops/sampling/sampling.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  for (const auto& [rows, words] : {std::pair<int64_t, int64_t>{512, 32}, {64, 151936}}) {
    sampling::Forward op;
    op.logits = testing::Random(DType::kF32, {rows, words}, 1, 3);
    op.random = testing::Host(std::vector<int32_t>(static_cast<size_t>(rows), 123456789));
    const std::string name = std::to_string(rows) + "x" + std::to_string(words);
    bench::MeasureBytes(flags, name, op, 4 * rows * words);
    op.top_p = 0.9f;
    bench::MeasureBytes(flags, name + "-top-p", op, 4 * rows * words);
  }
}
