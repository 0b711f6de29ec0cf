#include <cmath>
#include <limits>
#include <memory>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/grad-clip/device.h"
#include "ops/grad-clip/grad-clip.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::grad_clip::testing {
namespace {

using namespace varlen::testing;

// Norm, then the gradients.
std::vector<Tensor> Emulated(const Forward& op, uint64_t seed = 0, int64_t blocks = 2) {
  std::vector<std::unique_ptr<simt::GlobalArray<float>>> gradients;
  std::vector<int64_t> sizes;
  std::vector<float*> pointers;
  for (const Tensor& tensor : op.gradients) {
    gradients.push_back(
        std::make_unique<simt::GlobalArray<float>>(tensor.data<float>(), tensor.size()));
    pointers.push_back(gradients.back()->data());
    sizes.push_back(tensor.size());
  }
  const PieceTable table(sizes);
  const simt::GlobalArray<int64_t> first(table.first), elements(table.sizes);
  const simt::GlobalArray<float*> addresses(pointers);
  const simt::GlobalArray<double> squares(table.count);
  const simt::GlobalArray<float> norm(1), factor(1);
  const DevicePieces pieces{first.data(), elements.data(), first.size(), table.count};
  Emulate<DeviceSquares>(blocks, {pieces, addresses.data(), squares.data()}, seed);
  Emulate<DeviceNorm>(1, {squares.data(), table.count, op.max_norm, norm.data(), factor.data()},
                      seed);
  Emulate<DeviceClip>(blocks, {pieces, addresses.data(), factor.data()}, seed);
  std::vector<Tensor> results{Download(norm)};
  for (const auto& gradient : gradients) results.push_back(Download(*gradient));
  return results;
}

Forward Make(double max_norm) {
  Forward op;
  op.gradients = {Random(DType::kF32, {5000}, 1), Random(DType::kF32, {0}, 2),
                  Random(DType::kF32, {3, 7}, 3, 1e3), Random(DType::kF32, {8192}, 4, 1e-3)};
  op.max_norm = max_norm;
  return op;
}

TEST_CASE("CUDA gradClip: norm and gradients agree with the reference, clipped or not") {
  for (double max_norm : {0.5, 1e9, std::numeric_limits<double>::infinity()}) {
    CAPTURE(max_norm);
    const Forward op = Make(max_norm);
    Forward reference = op;
    const DType kDouble = DType::kF64;
    MakeOutputs make(&kDouble);
    reference.Visit(make);
    REQUIRE(RunReference(reference).ok());
    const std::vector<Tensor> got = Emulated(op, 3);
    CHECK(Difference(got[0], reference.norm, 1e-6) == "");
    for (size_t i = 0; i < op.gradients.size(); ++i) {
      CHECK(Difference(got[i + 1], reference.gradients[i], 1e-6) == "");
    }
  }
}

TEST_CASE("CUDA gradClip: eight orders and grids give the same bits") {
  const Forward op = Make(0.5);
  const std::vector<Tensor> one = Emulated(op, 0, 1);
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(Emulated(op, seed, static_cast<int64_t>(seed)), one));
  }
}

TEST_CASE("CUDA gradClip: a norm that is no number leaves the gradients as they are") {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    const Forward op = Make(0.5);
    op.gradients[2].data<float>()[4] = bad;
    const std::vector<Tensor> got = Emulated(op);
    CHECK(!std::isfinite(Get(got[0], 0)));
    for (size_t i = 0; i < op.gradients.size(); ++i) {
      CHECK(std::memcmp(got[i + 1].address(), op.gradients[i].address(),
                        static_cast<size_t>(op.gradients[i].size()) * 4) == 0);
    }
  }
}

}  // namespace
}  // namespace varlen::grad_clip::testing
