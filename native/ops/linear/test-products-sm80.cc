#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/linear/device.h"
#include "ops/linear/linear.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::linear::testing {
namespace {

using namespace varlen::testing;

struct Shape {
  int64_t rows, in, out;
  bool bias = true;
  bool vector_access = true;  // where rows allow it
};
struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};

template <class T>
DeviceMatrix<T> MatrixOf(const simt::GlobalArray<T>& array, int64_t rows, int64_t columns,
                         const Shape& shape) {
  return {array.data(), columns,
          nullptr,      rows,
          columns,      shape.vector_access && AllowsVectors(array.data(), columns, sizeof(T))};
}

// out, dx, dWeight, dBias.
template <class T>
std::vector<Tensor> Emulated(const Forward& f, const Backward& b, const Shape& shape,
                             const Run& run = {}) {
  const auto x = Upload<T>(f.x), weight = Upload<T>(f.weight), bias = Upload<T>(f.bias),
             d_out = Upload<T>(b.d_out);
  const simt::GlobalArray<T> out(shape.rows * shape.out), dx(shape.rows * shape.in);
  const simt::GlobalArray<float> d_weight(shape.out * shape.in), d_bias(shape.out);
  const auto x_rows = MatrixOf(x, shape.rows, shape.in, shape);
  const auto w_rows = MatrixOf(weight, shape.out, shape.in, shape);
  const auto dy_rows = MatrixOf(d_out, shape.rows, shape.out, shape);
  Emulate<DeviceForward<T>>(
      run.blocks, {x_rows, w_rows, shape.rows, shape.out, shape.in, Given(bias), out.data()},
      run.seed);
  Emulate<DeviceInputGradients<T>>(
      run.blocks, {dy_rows, w_rows, shape.rows, shape.in, shape.out, nullptr, dx.data()}, run.seed);
  Emulate<DeviceWeightGradients<T>>(
      run.blocks, {dy_rows, x_rows, shape.out, shape.in, shape.rows, nullptr, d_weight.data()},
      run.seed);
  const RowGroups groups(shape.rows);
  const simt::GlobalArray<float> partials(groups.count * shape.out);
  Emulate<BiasSums<T>>(run.blocks,
                       {{d_out.data(), shape.out, dy_rows.vector_access},
                        shape.rows,
                        shape.out,
                        groups,
                        partials.data()},
                       run.seed);
  Emulate<DeviceColumnTotals>(run.blocks, {partials.data(), groups.count, shape.out, d_bias.data()},
                              run.seed);
  return {Download(out), Download(dx), Download(d_weight), Download(d_bias)};
}

template <class T>
std::pair<Forward, Backward> Make(const Shape& shape, uint32_t seed) {
  const DType dtype = DTypeOf<T>::value;
  Forward f;
  f.x = Random(dtype, {shape.rows, shape.in}, seed);
  f.weight = Random(dtype, {shape.out, shape.in}, seed + 1);
  if (shape.bias) f.bias = Random(dtype, {shape.out}, seed + 2);
  Backward b;
  b.d_out = Random(dtype, {shape.rows, shape.out}, seed + 3);
  b.x = f.x;
  b.weight = f.weight;
  return {f, b};
}

template <class T>
void CheckShape(const Shape& shape, uint32_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " " << shape.rows << " x " << shape.in << " x " << shape.out);
  const auto [f, b] = Make<T>(shape, seed);
  std::vector<Tensor> want = ReferenceOutputs(f);
  for (const Tensor& gradient : ReferenceOutputs(b)) want.push_back(gradient);
  const std::vector<Tensor> got = Emulated<T>(f, b, shape, {.seed = seed});
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(Difference(got[i], want[i], 2e-6) == "");
  }
}

TEST_CASE("CUDA linear: both passes agree with the reference for sizes that fit no tile") {
  uint32_t seed = 1;
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{5, 7, 33, false}, Shape{140, 40, 136},
                             Shape{130, 72, 24, true, false}}) {
    CheckShape<float>(shape, ++seed);
    CheckShape<bfloat16>(shape, seed);
    CheckShape<half>(shape, seed);
  }
}

TEST_CASE("CUDA linear: eight orders give the same bits, and a row those it has alone") {
  const Shape shape{135, 40, 150};
  const auto [f, b] = Make<bfloat16>(shape, 3);
  const std::vector<Tensor> one = Emulated<bfloat16>(f, b, shape, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(Emulated<bfloat16>(f, b, shape,
                                      {.seed = seed, .blocks = static_cast<int64_t>(seed % 4) + 1}),
                   one));
  }
  Forward alone = f;
  alone.x = Tensor::Empty(DType::kBF16, {1, 40});
  std::copy_n(f.x.data<bfloat16>() + 131 * 40, 40, alone.x.data<bfloat16>());
  Backward back = b;
  back.d_out = Tensor::Empty(DType::kBF16, {1, 150});
  std::copy_n(b.d_out.data<bfloat16>() + 131 * 150, 150, back.d_out.data<bfloat16>());
  const std::vector<Tensor> row = Emulated<bfloat16>(alone, back, {1, 40, 150}, {.seed = 5});
  CHECK(std::memcmp(row[0].data<bfloat16>(), one[0].data<bfloat16>() + 131 * 150, 300) == 0);
  CHECK(std::memcmp(row[1].data<bfloat16>(), one[1].data<bfloat16>() + 131 * 40, 80) == 0);
}

}  // namespace
}  // namespace varlen::linear::testing
