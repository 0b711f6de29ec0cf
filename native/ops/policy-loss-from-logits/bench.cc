// Bytes per second of the loss from logits beside those of a copy: the forward reads the logits
// once, the backward reads and writes them.
#include "core/loss/length_hash.h"
#include "core/op_bench.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 256, kVocab = 32768, kBytes = kTokens * kVocab * 4;
  policy_loss_from_logits::Forward forward;
  forward.logits = testing::Random(DType::kF32, {kTokens, kVocab}, 1);
  forward.target_ids = testing::Host(std::vector<int32_t>(kTokens, 5));
  forward.batch.old_logprobs = testing::Random(DType::kF32, {kTokens}, 2, 0.1);
  for (int64_t i = 0; i < kTokens; ++i) forward.batch.old_logprobs.data<float>()[i] -= 11;
  forward.batch.cu_seqlens = testing::Host(std::vector<int32_t>{0, kTokens});
  forward.batch.advantages = testing::Host(std::vector<float>{1});
  forward.batch.seq_scale = testing::Host(std::vector<float>{1.0f / kTokens});
  forward.config.ratio_level = static_cast<int64_t>(loss::Level::kToken);
  loss::LengthHash hash(1);
  hash.Add(kTokens);
  forward.config.hash_low = hash.low();
  forward.config.hash_high = hash.high();
  bench::MeasureBytes(flags, "forward-256x32768-float32", forward, kBytes);
  const std::vector<Tensor> results = testing::Outputs(forward);
  policy_loss_from_logits::Backward backward;
  backward.d_loss = testing::FromValues(DType::kF32, {1}, {1});
  backward.d_loss.rank = 0;
  backward.logits = forward.logits;
  backward.target_ids = forward.target_ids;
  backward.d_logprobs = results[1];
  backward.lse = results[4];
  bench::MeasureBytes(flags, "backward-256x32768-float32", backward, 2 * kBytes);
}
