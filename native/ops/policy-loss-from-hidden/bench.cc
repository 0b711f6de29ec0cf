// The fused loss, forward and backward, against this package's own float32 matrix product by turns
// in the same process: a shared machine slows both alike. Floating-point operations are those of
// the products that have no way around: 2 T D V forward, 6 T D V backward (the logits again,
// dHidden, dWeight). `peak` of a line is the rate of the product.
//   varlen_bench_policy-loss-from-hidden [--quick] [--threads N] [--case TEXT]
#include "core/gemm.h"
#include "core/loss/length_hash.h"
#include "core/op_bench.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

namespace varlen::policy_loss_from_hidden {
namespace {

using namespace varlen::testing;

struct Case {
  const char* name;
  DType dtype;
  int64_t tokens, size, vocab;
  bool entropy = false;
  double weights = 0.02;  // their size: logits of 0.6, or of 6 where few words have all the mass
  double tile_filter = 0;
};

constexpr Case kCases[] = {
    {"t512-d1024-v4096-float32", DType::kF32, 512, 1024, 4096},
    {"t512-d1024-v4096-entropy-float32", DType::kF32, 512, 1024, 4096, true},
    {"t512-d1024-v4096-bfloat16", DType::kBF16, 512, 1024, 4096},
    {"t1024-d256-v8192-float32", DType::kF32, 1024, 256, 8192},
    {"t1024-d256-v32768-sharp", DType::kF32, 1024, 256, 32768, false, 0.4},
    {"t1024-d256-v32768-filter", DType::kF32, 1024, 256, 32768, false, 0.4, 0x1p-12},
};

// One sequence of all tokens under PPO.
Forward MakeForward(const Case& c) {
  Forward op;
  op.head.hidden = Random(c.dtype, {c.tokens, c.size}, 1);
  op.head.weight = Random(c.dtype, {c.vocab, c.size}, 2, c.weights);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < c.tokens; ++t) targets.push_back(static_cast<int32_t>(t * 31 % c.vocab));
  op.options.target_ids = Host(targets);
  op.batch.cu_seqlens = Host(std::vector<int32_t>{0, static_cast<int32_t>(c.tokens)});
  op.batch.old_logprobs =
      FromValues(DType::kF32, {c.tokens}, std::vector<double>(static_cast<size_t>(c.tokens), -8.3));
  op.batch.advantages = Host(std::vector<float>{1.0f});
  op.batch.advantages_per = 1;
  op.batch.seq_scale = Host(std::vector<float>{1.0f / static_cast<float>(c.tokens)});
  op.config.ratio_level = static_cast<int64_t>(loss::Level::kToken);
  op.config.clip_kind = static_cast<int64_t>(loss::Clip::kPpo);
  op.config.clip[0] = 0.2;
  op.config.clip[1] = 0.28;
  op.config.entropy_coef = c.entropy ? 0.01 : 0;
  op.config.entropy_scale = 1.0 / static_cast<double>(c.tokens);
  loss::LengthHash hash(1);
  hash.Add(c.tokens);
  op.config.hash_low = hash.low();
  op.config.hash_high = hash.high();
  MakeOutputs make;
  op.Visit(make);
  return op;
}

Backward MakeBackward(const Forward& forward, double tile_filter) {
  Backward op;
  op.d_loss = FromValues(DType::kF32, {}, {1});
  op.head = forward.head;
  op.options = forward.options;
  op.tile_filter = tile_filter;
  op.d_logprobs = forward.d_logprobs;
  op.d_entropies = forward.d_entropies;
  op.lse = forward.lse;
  op.entropies = forward.entropies;
  op.gradients.want_bias = false;
  MakeOutputs make;
  op.Visit(make);
  return op;
}

bool RunCase(const Case& c, const bench::Flags& flags) {
  SetNumThreads(flags.threads);
  const Forward forward = MakeForward(c);
  if (!forward.Validate().ok() || !Run(forward).ok()) return false;
  const Backward backward = MakeBackward(forward, c.tile_filter);
  if (!Run(backward).ok()) return false;

  constexpr int64_t kSide = 1024, kColumns = 2048;
  const Tensor a = Random(DType::kF32, {kSide, kSide}, 1),
               b = Random(DType::kF32, {kColumns, kSide}, 2),
               out = Tensor::Empty(DType::kF32, {kSide, kColumns});
  Gemm gemm{kSide, kColumns, kSide, {}, {}, {}};
  gemm.a = {a.data<float>(), DType::kF32, kSide};
  gemm.b = {b.data<float>(), DType::kF32, kSide, true};
  gemm.c = {out.data<float>(), DType::kF32, kColumns};
  if (!Multiply(gemm).ok()) return false;

  const auto seconds_of = [](const auto& run) {
    const double start = bench::Seconds();
    return run().ok() ? bench::Seconds() - start : 1e9;
  };
  double best[3] = {1e9, 1e9, 1e9};
  const double end = bench::Seconds() + 4 * flags.seconds;
  for (int slice = 0; slice < 6 || bench::Seconds() < end; ++slice) {
    best[0] = std::min(best[0], seconds_of([&] { return Run(forward); }));
    best[1] = std::min(best[1], seconds_of([&] { return Multiply(gemm); }));
    best[2] = std::min(best[2], seconds_of([&] { return Run(backward); }));
    best[1] = std::min(best[1], seconds_of([&] { return Multiply(gemm); }));
  }
  const double product =
      2e-9 * static_cast<double>(c.tokens * c.size) * static_cast<double>(c.vocab);
  const double peak = 2e-9 * kSide * kColumns * kSide / best[1];
  bench::Print("policyLossFromHidden", c.name, flags.threads, {product / best[0], peak});
  bench::Print("policyLossFromHiddenBackward", c.name, flags.threads,
               {3 * product / best[2], peak});
  bench::Print("policyLossFromHidden+Backward", c.name, flags.threads,
               {4 * product / (best[0] + best[2]), peak});
  return true;
}

}  // namespace
}  // namespace varlen::policy_loss_from_hidden

int main(int argc, char** argv) {
  using namespace varlen::policy_loss_from_hidden;
  const varlen::bench::Flags flags = varlen::bench::ReadFlags(argc, argv);
  for (const Case& c : kCases) {
    if (std::strstr(c.name, flags.only.c_str()) == nullptr) continue;
    if (!RunCase(c, flags)) {
      std::fprintf(stderr, "%s: did not run\n", c.name);
      return 1;
    }
  }
  return 0;
}
