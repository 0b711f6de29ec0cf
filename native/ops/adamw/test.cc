#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/adamw/adamw.h"

namespace varlen::adamw::testing {
namespace {
using namespace varlen::testing;

Forward Step(DType dtype, const std::vector<int64_t>& sizes) {
  Forward op;
  uint32_t seed = 1;
  for (int64_t size : sizes) {
    op.gradients.push_back(Random(DType::kF32, {size}, seed++));
    op.parameters.push_back(Random(dtype, {size}, seed++));
    if (dtype != DType::kF32) op.masters.push_back(CopyAs(op.parameters.back(), DType::kF32));
    op.exp_avg.push_back(Random(DType::kF32, {size}, seed++, 0.1));
    Tensor squares = Random(DType::kF32, {size}, seed++, 0.1);
    for (int64_t i = 0; i < size; ++i) Set(squares, i, std::abs(Get(squares, i)));
    op.exp_avg_sq.push_back(squares);
  }
  return op;
}

TEST_CASE("adamw: the first step moves by the learning rate, whatever the gradient") {
  Forward op;
  op.gradients = {FromValues(DType::kF32, {2}, {1e-3, -50})};
  op.parameters = {FromValues(DType::kF32, {2}, {1, 2})};
  op.exp_avg = {FromValues(DType::kF32, {2}, {0, 0})};
  op.exp_avg_sq = {FromValues(DType::kF32, {2}, {0, 0})};
  op.lr = 0.1;
  op.eps = 0;
  op.weight_decay = 0.5;  // 1 - lr wd = 0.95, before the step
  const std::vector<Tensor> got = Outputs(op);
  CHECK(Get(got[0], 0) == doctest::Approx(0.95 - 0.1));
  CHECK(Get(got[0], 1) == doctest::Approx(1.9 + 0.1));
  CHECK(Get(got[1], 0) == doctest::Approx(1e-4));
  CHECK(Get(got[2], 1) == doctest::Approx(2.5));
}

TEST_CASE("adamw: agrees with the reference for every dtype, step and form, over many tensors") {
  for (DType dtype : kStorageTypes) {
    for (int64_t step : {1, 2, 100, 100000}) {
      for (bool hf : {false, true}) {
        Forward op = Step(dtype, {1, 15, 0, 16385, 33, 40000});
        op.step = step;
        op.eps_before_correction = hf;
        op.eps = 1e-6;
        op.weight_decay = 0.1;
        op.lr = 0.01;
        INFO(NameOf(dtype) << " " << step << " " << hf);
        CHECK(Inaccuracy(op, 2e-6) == "");
      }
    }
  }
}

TEST_CASE("adamw: a norm that is not finite changes nothing, a finite one does not matter") {
  Forward op = Step(DType::kBF16, {40});
  const std::vector<Tensor> moved = Outputs(op);
  for (double norm : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    op.gradient_norm = FromValues(DType::kF32, {1}, {norm});
    const std::vector<Tensor> got = Outputs(op);
    for (int64_t i = 0; i < 40; ++i) {
      CHECK(Get(got[0], i) == Get(op.parameters[0], i));
      CHECK(Get(got[2], i) == Get(op.exp_avg[0], i));
    }
  }
  op.gradient_norm = FromValues(DType::kF32, {1}, {3});
  CHECK(BitDifference(Outputs(op), moved) == "");
}

TEST_CASE("adamw: refuses lists that do not fit and numbers out of range") {
  const auto argument = [](const auto& change) {
    Forward op = Step(DType::kF32, {4, 5});
    change(op);
    return op.Validate().argument;
  };
  CHECK(argument([](Forward&) {}) == "");
  CHECK(argument([](Forward& op) { op.parameters.pop_back(); }) == "parameters");
  CHECK(argument([](Forward& op) { op.exp_avg[1] = op.exp_avg[0]; }) == "expAvg");
  CHECK(argument([](Forward& op) { op.exp_avg_sq.clear(); }) == "expAvgSq");
  CHECK(argument([](Forward& op) { op.masters = op.parameters; }) == "masters");
  CHECK(argument([](Forward& op) { op.step = 0; }) == "step");
  CHECK(argument([](Forward& op) { op.lr = -1; }) == "lr");
  CHECK(argument([](Forward& op) { op.eps = NAN; }) == "eps");
  CHECK(argument([](Forward& op) { op.weight_decay = INFINITY; }) == "weightDecay");
  CHECK(argument([](Forward& op) { op.beta1 = 1; }) == "beta1");
  CHECK(argument([](Forward& op) { op.beta2 = -0.1; }) == "beta2");
  Forward half = Step(DType::kF16, {4});
  half.masters.clear();
  CHECK(half.Validate().argument == "masters");
}

}  // namespace
}  // namespace varlen::adamw::testing
