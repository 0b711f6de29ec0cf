#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/rms-norm/device.h"
#include "ops/rms-norm/rms-norm.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::rms_norm::testing {
namespace {

using namespace varlen::testing;

struct Shape {
  int64_t rows, hidden;
  bool residual = true;
  bool vector_access = true;  // where rows allow it
};
struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};

// out, scale, sum (if there is a residual), dx, dWeight.
template <class T>
std::vector<Tensor> Emulated(const Forward& f, const Backward& b, const Shape& shape,
                             const Run& run) {
  const int64_t rows = shape.rows, hidden = shape.hidden;
  const bool vectors = shape.vector_access && hidden * sizeof(T) % 16 == 0;
  const auto x = Upload<T>(f.x), residual = Upload<T>(f.residual), weight = Upload<T>(f.weight),
             d_out = Upload<T>(b.d_out), d_sum = Upload<T>(b.d_sum);
  const simt::GlobalArray<T> out(rows * hidden), sum(rows * hidden), dx(rows * hidden);
  const simt::GlobalArray<float> scale(rows), d_weight(hidden);
  Emulate<DeviceNormalize<T>>(run.blocks,
                              {x.data(), Given(residual), weight.data(), f.eps, f.weight_offset,
                               rows, hidden, out.data(), scale.data(), sum.data(), vectors},
                              run.seed);
  const T* h = shape.residual ? sum.data() : x.data();
  Emulate<DeviceNormGradients<T>>(run.blocks,
                                  {d_out.data(), Given(d_sum), h, weight.data(), scale.data(),
                                   b.weight_offset, rows, hidden, dx.data(), vectors},
                                  run.seed);
  const RowGroups groups(rows);
  const simt::GlobalArray<float> partials(groups.count * hidden);
  Emulate<WeightSums<T>>(
      run.blocks,
      {{d_out.data(), h, scale.data(), hidden, vectors}, rows, hidden, groups, partials.data()},
      run.seed);
  Emulate<DeviceColumnTotals>(run.blocks, {partials.data(), groups.count, hidden, d_weight.data()},
                              run.seed);
  std::vector<Tensor> results{Download(out), Download(scale)};
  if (shape.residual) results.push_back(Download(sum));
  results.push_back(Download(dx));
  results.push_back(Download(d_weight));
  return results;
}

template <class T>
std::pair<Forward, Backward> Make(const Shape& shape, uint32_t seed) {
  const DType dtype = DTypeOf<T>::value;
  Forward f;
  f.x = Random(dtype, {shape.rows, shape.hidden}, seed);
  if (shape.residual) f.residual = Random(dtype, {shape.rows, shape.hidden}, seed + 1);
  f.weight = Random(dtype, {shape.hidden}, seed + 2);
  f.weight_offset = shape.residual ? 1 : 0;
  const std::vector<Tensor> out = ReferenceOutputs(f);
  Backward b;
  b.d_out = Random(dtype, {shape.rows, shape.hidden}, seed + 3);
  if (shape.residual) b.d_sum = Random(dtype, {shape.rows, shape.hidden}, seed + 4);
  b.sum = shape.residual ? CopyAs(out[2], dtype) : f.x;
  b.weight = f.weight;
  b.scale = CopyAs(out[1], DType::kF32);
  b.weight_offset = f.weight_offset;
  return {f, b};
}

template <class T>
void CheckShape(const Shape& shape, uint32_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " " << shape.rows << " x " << shape.hidden);
  const auto [f, b] = Make<T>(shape, seed);
  std::vector<Tensor> want = ReferenceOutputs(f);
  for (const Tensor& gradient : ReferenceOutputs(b)) want.push_back(gradient);
  const std::vector<Tensor> got = Emulated<T>(f, b, shape, {.seed = seed});
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(Difference(got[i], want[i], 3e-6) == "");
  }
}

TEST_CASE("CUDA rmsNorm: both passes agree with the reference for every size and dtype") {
  uint32_t seed = 1;
  for (const Shape& shape : {Shape{5, 7}, Shape{3, 64, false}, Shape{2, 1100}, Shape{40, 24, true},
                             Shape{4, 1032, false, false}}) {
    CheckShape<float>(shape, ++seed);
    CheckShape<bfloat16>(shape, seed);
    CheckShape<half>(shape, seed);
  }
}

TEST_CASE("CUDA rmsNorm: eight orders and grids give the same bits") {
  const Shape shape{37, 72};
  const auto [f, b] = Make<bfloat16>(shape, 3);
  const std::vector<Tensor> one = Emulated<bfloat16>(f, b, shape, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(
        Emulated<bfloat16>(f, b, shape, {.seed = seed, .blocks = static_cast<int64_t>(seed)}),
        one));
  }
}

}  // namespace
}  // namespace varlen::rms_norm::testing
