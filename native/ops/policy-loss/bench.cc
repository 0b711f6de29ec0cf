// Bytes per second of the policy loss beside those of a copy: reads of 4 bytes per log-probability
// array and 1 of the mask, a write of 4.
#include "core/loss/length_hash.h"
#include "core/op_bench.h"
#include "ops/policy-loss/policy-loss.h"

namespace {
using namespace varlen;

// PPO and a k3 penalty on `tokens` tokens in sequences of `length`.
policy_loss::Forward Ppo(int64_t tokens, int64_t length) {
  policy_loss::Forward p;
  p.logprobs = testing::Random(DType::kF32, {tokens}, 1, 0.3);
  p.batch.old_logprobs = testing::Random(DType::kF32, {tokens}, 2, 0.3);
  p.batch.ref_logprobs = testing::Random(DType::kF32, {tokens}, 3, 0.3);
  for (Tensor* t : {&p.logprobs, &p.batch.old_logprobs, &p.batch.ref_logprobs}) {
    for (int64_t i = 0; i < tokens; ++i) t->data<float>()[i] -= 2;
  }
  p.batch.loss_mask = Tensor::Empty(DType::kU8, {tokens});
  std::fill_n(p.batch.loss_mask.data<uint8_t>(), tokens, uint8_t{1});
  std::vector<int32_t> cu{0};
  std::vector<float> advantages, scale;
  loss::LengthHash hash(tokens / length);
  for (int64_t i = 0; i < tokens / length; ++i) {
    cu.push_back(static_cast<int32_t>((i + 1) * length));
    advantages.push_back(i % 2 == 0 ? 1 : -1);
    scale.push_back(1.0f / static_cast<float>(tokens));
    hash.Add(length);
  }
  p.batch.cu_seqlens = testing::Host(cu);
  p.batch.advantages = testing::Host(advantages);
  p.batch.seq_scale = testing::Host(scale);
  p.config.ratio_level = static_cast<int64_t>(loss::Level::kToken);
  p.config.clip_kind = static_cast<int64_t>(loss::Clip::kPpo);
  p.config.clip[0] = 0.2;
  p.config.clip[1] = 0.28;
  p.config.kl_kind = static_cast<int64_t>(loss::Kl::kK3);
  p.config.kl_coef = 0.05;
  p.config.hash_low = hash.low();
  p.config.hash_high = hash.high();
  return p;
}
}  // namespace

int main(int argc, char** argv) {
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kMillion = 1 << 20, kBytes = 17;
  bench::MeasureBytes(flags, "ppo-k3-4m-n1024", Ppo(4 * kMillion, 1024), 4 * kMillion * kBytes);
  bench::MeasureBytes(flags, "ppo-k3-1m-n1024", Ppo(kMillion, 1024), kMillion * kBytes);
  bench::MeasureBytes(flags, "ppo-k3-1m-n64", Ppo(kMillion, 64), kMillion * kBytes);
  policy_loss::Forward sequences = Ppo(kMillion, 1024);
  sequences.config.ratio_level = static_cast<int64_t>(loss::Level::kSequence);
  bench::MeasureBytes(flags, "gspo-k3-1m-n1024", sequences, kMillion * kBytes);
}
