// Floating-point operations per second of both passes over the whole vocabulary: four products
// forward, four backward.
//   varlen_bench_fused-linear-jsd [--quick] [--threads N] [--case TEXT]
#include "core/op_bench.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"

int main(int argc, char** argv) {
  using namespace varlen;
  using namespace varlen::fused_linear_jsd;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  constexpr int64_t kTokens = 256, kSize = 512, kVocab = 16384;
  Forward forward;
  forward.student.hidden = testing::Random(DType::kF32, {kTokens, kSize}, 1);
  forward.student.weight = testing::Random(DType::kF32, {kVocab, kSize}, 2, 0.05);
  forward.teacher.head.hidden = testing::Random(DType::kF32, {kTokens, kSize}, 3);
  forward.teacher.head.weight = testing::Random(DType::kF32, {kVocab, kSize}, 4, 0.05);
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
  const std::string name = "t256-d512-v16384";
  const double product = 2.0 * kTokens * kSize * kVocab;
  const auto measure = [&](const char* op, const auto& params) {
    bench::Print(
        op, name, flags.threads,
        bench::Measure([&] { (void)Run(params).ok(); }, 4 * product, flags.threads, flags.seconds));
  };
  measure(Forward::kName, forward);
  backward.gradients.want_bias = false;
  backward.Visit(make);
  measure(Backward::kName, backward);
}
