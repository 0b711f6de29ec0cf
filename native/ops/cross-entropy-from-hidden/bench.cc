// The fused loss of supervised training against the FMA peak, at the head of a small transformer
// and at one that is wide. 2 T D V floating-point operations forward, 6 T D V backward (the logits
// again, dHidden, dWeight).
//   varlen_bench_cross-entropy-from-hidden [--quick] [--threads N] [--case TEXT]
#include "core/op_bench.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

int main(int argc, char** argv) {
  using namespace varlen;
  using namespace varlen::cross_entropy_from_hidden;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  struct Shape {
    int64_t tokens, size, vocab;
  };
  for (const Shape& shape : {Shape{512, 1024, 4096}, Shape{2048, 256, 2048}, Shape{8192, 96, 48}}) {
    const std::string name = "t" + std::to_string(shape.tokens) + "-d" +
                             std::to_string(shape.size) + "-v" + std::to_string(shape.vocab);
    if (name.find(flags.only) == std::string::npos) continue;
    Forward forward;
    forward.head.hidden = testing::Random(DType::kF32, {shape.tokens, shape.size}, 1);
    forward.head.weight = testing::Random(DType::kF32, {shape.vocab, shape.size}, 2, 0.05);
    std::vector<int32_t> targets;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      targets.push_back(static_cast<int32_t>(t * 31 % shape.vocab));
    }
    forward.tokens.target_ids = testing::Host(targets);
    testing::MakeOutputs make;
    forward.Visit(make);
    const double product = 2.0 * static_cast<double>(shape.tokens * shape.size * shape.vocab);
    bench::Print(
        Forward::kName, name, flags.threads,
        bench::Measure([&] { (void)Run(forward).ok(); }, product, flags.threads, flags.seconds));
    Backward backward;
    backward.upstream.d_loss = testing::FromValues(DType::kF32, {}, {1});
    backward.upstream.lse = forward.out.lse;
    backward.upstream.entropies = forward.out.entropies;
    backward.head = forward.head;
    backward.tokens = forward.tokens;
    backward.gradients.want_bias = false;
    backward.Visit(make);
    bench::Print(Backward::kName, name, flags.threads,
                 bench::Measure([&] { (void)Run(backward).ok(); }, 3 * product, flags.threads,
                                flags.seconds));
  }
}
