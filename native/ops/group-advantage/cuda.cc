#include <algorithm>

#include "core/cuda/offsets.h"
#include "ops/group-advantage/group-advantage.h"
#include "ops/group-advantage/kernels.h"

// The CUDA implementation: one launch; a refused group is worded by the CPU's code.
namespace varlen::group_advantage {
namespace {

// When the kernel refused a group, the answers come back and the CPU says what it would have said.
void CheckWhenDone(cuda::Launch& launch, const Forward& p, const uint8_t* refusals) {
  const int64_t num_seqs = p.rewards.shape[0];
  launch.OnDone([p, num_seqs, refusals = launch.ReadBack<uint8_t>(refusals, num_seqs),
                 rewards = launch.ReadBack<float>(p.rewards.data<float>(), num_seqs),
                 groups = cuda::ReadBack(launch, p.group_ids),
                 lengths = cuda::ReadBack(launch, p.lengths)]() -> Status {
    const auto refused = [](uint8_t refusal) { return refusal != 0; };
    if (std::none_of(refusals, refusals + num_seqs, refused)) return {};
    Forward host = p;
    host.rewards = Tensor::Empty(DType::kF32, {num_seqs});
    host.advantages = Tensor::Empty(DType::kF32, {num_seqs});
    std::copy_n(rewards, num_seqs, host.rewards.data<float>());
    host.group_ids = groups.OnHost();
    host.lengths = lengths.OnHost();
    return RunCpu(host);
  });
}

}  // namespace

Status RunCuda(const Forward& p) {
  cuda::Launch& launch = cuda::Launch::Current();
  const int64_t num_seqs = p.rewards.shape[0];
  if (num_seqs == 0) return {};
  const auto estimator = static_cast<Estimator>(p.estimator);
  const auto singleton = static_cast<Singleton>(p.singleton);
  auto* refusals = launch.Scratch<uint8_t>(num_seqs);
  launch.Run<GroupAdvantage>(
      (num_seqs + GroupAdvantage::kWarps - 1) / GroupAdvantage::kWarps,
      {p.rewards.data<float>(), launch.DataOf(p.group_ids), launch.DataOf(p.lengths), num_seqs,
       estimator, singleton, p.eps, p.advantages.data<float>(), refusals});
  if (estimator == Estimator::kMaxRl || singleton == Singleton::kError) {
    CheckWhenDone(launch, p, refusals);
  }
  return launch.status();
}

}  // namespace varlen::group_advantage
