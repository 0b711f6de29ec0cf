// Rates against the FMA peak at the shapes of a small transformer: 8192 packed tokens, hidden 256.
#include <cstring>

#include "core/op_bench.h"
#include "ops/linear/linear.h"

int main(int argc, char** argv) {
  using namespace varlen;
  const bench::Flags flags = bench::ReadFlags(argc, argv);
  struct Shape {
    int64_t rows, in, out;
  };
  for (const Shape& shape : {Shape{8192, 96, 96},
                             {8192, 128, 384},
                             {8192, 256, 256},
                             {8192, 256, 704},
                             {8192, 704, 256},
                             {512, 96, 256}}) {
    const std::string name = std::to_string(shape.rows) + "x" + std::to_string(shape.in) + "x" +
                             std::to_string(shape.out);
    if (name.find(flags.only) == std::string::npos) continue;
    const double flops = 2.0 * static_cast<double>(shape.rows * shape.in * shape.out);
    linear::Forward forward;
    forward.x = testing::Random(DType::kF32, {shape.rows, shape.in}, 1);
    forward.weight = testing::Random(DType::kF32, {shape.out, shape.in}, 2);
    testing::MakeOutputs make;
    forward.Visit(make);
    bench::Print("linear", name, flags.threads,
                 bench::Measure([&] { (void)linear::Run(forward).ok(); }, flops, flags.threads,
                                flags.seconds));
    linear::Backward backward;
    backward.d_out = testing::Random(DType::kF32, {shape.rows, shape.out}, 3);
    backward.x = forward.x;
    backward.weight = forward.weight;
    backward.want_bias = false;
    backward.Visit(make);
    bench::Print("linearBackward", name, flags.threads,
                 bench::Measure([&] { (void)linear::Run(backward).ok(); }, 2 * flops, flags.threads,
                                flags.seconds));
  }
}
