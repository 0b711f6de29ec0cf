#include <cmath>
#include <limits>
#include <memory>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/adamw/adamw.h"
#include "ops/adamw/device.h"

// The kernel, run by the host emulator, against the float64 reference.
namespace varlen::adamw::testing {
namespace {

using namespace varlen::testing;

// One tensor of the step in device memory.
struct Uploaded {
  simt::GlobalArray<float> gradient, value, exp_avg, exp_avg_sq;
  simt::GlobalArray<bfloat16> bfloat;
  simt::GlobalArray<half> float16;

  Uploaded(const Forward& op, size_t n)
      : gradient(Upload<float>(op.gradients[n])),
        value(Upload<float>(op.masters.empty() ? op.parameters[n] : op.masters[n])),
        exp_avg(Upload<float>(op.exp_avg[n])),
        exp_avg_sq(Upload<float>(op.exp_avg_sq[n])),
        bfloat(op.parameters[n].dtype == DType::kBF16 ? op.parameters[n].size() : 0),
        float16(op.parameters[n].dtype == DType::kF16 ? op.parameters[n].size() : 0) {}

  DeviceParameter Parameter(DType dtype) const {
    void* rounded = dtype == DType::kBF16  ? static_cast<void*>(bfloat.data())
                    : dtype == DType::kF16 ? static_cast<void*>(float16.data())
                                           : nullptr;
    return {gradient.data(), value.data(), rounded, exp_avg.data(), exp_avg_sq.data(), dtype};
  }
};

// Per tensor: parameter, float32 value, both averages.
std::vector<Tensor> Emulated(const Forward& op, uint64_t seed = 0, int64_t blocks = 2) {
  std::vector<std::unique_ptr<Uploaded>> tensors;
  std::vector<DeviceParameter> parameters;
  std::vector<int64_t> sizes;
  for (size_t n = 0; n < op.gradients.size(); ++n) {
    tensors.push_back(std::make_unique<Uploaded>(op, n));
    parameters.push_back(tensors.back()->Parameter(op.parameters[n].dtype));
    sizes.push_back(op.gradients[n].size());
  }
  const PieceTable table(sizes);
  const simt::GlobalArray<int64_t> first(table.first), elements(table.sizes);
  const simt::GlobalArray<DeviceParameter> list(parameters);
  const auto norm = Upload<float>(op.gradient_norm);
  Emulate<DeviceStep>(blocks,
                      {{first.data(), elements.data(), first.size(), table.count},
                       list.data(),
                       Given(norm),
                       DeviceFactorsOf(op.step, op.lr, op.beta1, op.beta2, op.eps, op.weight_decay,
                                       op.eps_before_correction)},
                      seed);
  std::vector<Tensor> results;
  for (size_t n = 0; n < op.gradients.size(); ++n) {
    const Uploaded& t = *tensors[n];
    results.push_back(t.bfloat.size() > 0    ? Download(t.bfloat)
                      : t.float16.size() > 0 ? Download(t.float16)
                                             : Download(t.value));
    results.push_back(Download(t.value));
    results.push_back(Download(t.exp_avg));
    results.push_back(Download(t.exp_avg_sq));
  }
  return results;
}

Forward Make(DType dtype, bool eps_before_correction) {
  Forward op;
  uint32_t seed = 1;
  for (int64_t size : {int64_t{5000}, int64_t{3}, int64_t{4096}}) {
    op.gradients.push_back(Random(DType::kF32, {size}, ++seed));
    op.parameters.push_back(Random(dtype, {size}, ++seed));
    if (dtype != DType::kF32) op.masters.push_back(CopyAs(op.parameters.back(), DType::kF32));
    op.exp_avg.push_back(Random(DType::kF32, {size}, ++seed, 0.1));
    op.exp_avg_sq.push_back(Random(DType::kF32, {size}, ++seed, 0.1));
    for (int64_t i = 0; i < size; ++i) {
      Set(op.exp_avg_sq.back(), i, std::abs(Get(op.exp_avg_sq.back(), i)));
    }
  }
  op.step = 7;
  op.lr = 0.01;
  op.weight_decay = 0.1;
  op.eps = 1e-3;
  op.eps_before_correction = eps_before_correction;
  return op;
}

TEST_CASE("CUDA adamw: a step agrees with the reference in both forms and every dtype") {
  for (DType dtype : kStorageTypes) {
    for (bool before : {false, true}) {
      INFO(NameOf(dtype) << " eps before correction " << before);
      const Forward op = Make(dtype, before);
      Forward reference = op;
      const DType kDouble = DType::kF64;
      MakeOutputs make(&kDouble);
      reference.Visit(make);
      REQUIRE(RunReference(reference).ok());
      const std::vector<Tensor> got = Emulated(op, 5);
      for (size_t n = 0; n < op.gradients.size(); ++n) {
        const Tensor& value = dtype == DType::kF32 ? reference.parameters[n] : reference.masters[n];
        CHECK(Difference(got[4 * n], reference.parameters[n], 1e-6) == "");
        CHECK(Difference(got[4 * n + 1], value, 1e-6) == "");
        CHECK(Difference(got[4 * n + 2], reference.exp_avg[n], 1e-6) == "");
        CHECK(Difference(got[4 * n + 3], reference.exp_avg_sq[n], 1e-6) == "");
      }
    }
  }
}

TEST_CASE("CUDA adamw: eight orders and grids give the same bits; a norm that is none stops it") {
  Forward op = Make(DType::kBF16, false);
  const std::vector<Tensor> one = Emulated(op, 0, 1);
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(Emulated(op, seed, static_cast<int64_t>(seed)), one));
  }
  op.gradient_norm = FromValues(DType::kF32, {1}, {INFINITY});
  const std::vector<Tensor> stopped = Emulated(op);
  CHECK(std::isnan(Get(stopped[0], 0)));  // never written
  for (size_t n = 0; n < 3; ++n) {
    CHECK(SameBits({stopped[4 * n + 1], stopped[4 * n + 2], stopped[4 * n + 3]},
                   {op.masters[n], op.exp_avg[n], op.exp_avg_sq[n]}));
  }
}

}  // namespace
}  // namespace varlen::adamw::testing
