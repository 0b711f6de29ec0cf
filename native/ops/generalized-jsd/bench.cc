// Bytes per second beside a copy that reads and writes as much: both logits once forward; both and
// the gradient backward.
//   varlen_bench_generalized-jsd [--quick] [--threads N] [--case TEXT]
#include "core/op_bench.h"
#include "ops/generalized-jsd/generalized-jsd.h"

int main(int argc, char** argv) {
  using namespace varlen;
  using namespace varlen::generalized_jsd;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 256, kVocab = 32768;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Forward forward;
    forward.student = testing::Random(dtype, {kTokens, kVocab}, 1);
    forward.teacher = testing::Random(dtype, {kTokens, kVocab}, 2);
    testing::MakeOutputs make;
    forward.Visit(make);
    if (!Run(forward).ok()) return 1;
    Backward backward;
    backward.student = forward.student;
    backward.teacher = forward.teacher;
    backward.upstream.d_loss = testing::FromValues(DType::kF32, {}, {1});
    backward.upstream.coefficients = forward.out.coefficients;
    backward.upstream.student_lse = forward.out.student_lse;
    backward.upstream.teacher_lse = forward.out.teacher_lse;
    backward.upstream.inner = forward.out.inner;
    const std::string name = "t256-v32768-" + std::string(NameOf(dtype));
    const int64_t bytes = kTokens * kVocab * SizeOf(dtype);
    bench::MeasureBytes(flags, name, forward, 2 * bytes);
    bench::MeasureBytes(flags, name, backward, 3 * bytes);
  }
}
