#include "core/op_bench.h"
#include "ops/group-advantage/group-advantage.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kAnswers = 65536;
  std::vector<int32_t> groups;
  for (int64_t i = 0; i < kAnswers; ++i) groups.push_back(static_cast<int32_t>(i / 8));
  group_advantage::Forward forward;
  forward.rewards = testing::Random(DType::kF32, {kAnswers}, 1);
  forward.group_ids = testing::Host(groups);
  bench::MeasureBytes(flags, "grpo-65536x8", forward, kAnswers * 12);
}
