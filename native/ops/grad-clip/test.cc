#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/grad-clip/grad-clip.h"

namespace varlen::grad_clip::testing {
namespace {
using namespace varlen::testing;

TEST_CASE("grad-clip: scales two tensors by their common norm, and leaves small ones alone") {
  Forward op;
  op.gradients = {FromValues(DType::kF32, {1}, {3}), FromValues(DType::kF32, {2}, {0, 4})};
  op.max_norm = 1;
  std::vector<Tensor> got = Outputs(op);
  CHECK(Get(got[2], 0) == 5);
  CHECK(Get(got[0], 0) == doctest::Approx(0.6).epsilon(1e-6));
  CHECK(Get(got[1], 1) == doctest::Approx(0.8).epsilon(1e-6));
  op.max_norm = 6;
  got = Outputs(op);
  CHECK(Get(got[0], 0) == 3);
  CHECK(Get(got[2], 0) == 5);
}

TEST_CASE("grad-clip: agrees with the reference over many tensors, at any limit") {
  for (double max_norm : {0.0, 1e-3, 1.0, 1e9, static_cast<double>(INFINITY)}) {
    Forward op;
    uint32_t seed = 1;
    for (int64_t size : {1, 0, 17, 16384, 16385, 70000}) {
      op.gradients.push_back(Random(DType::kF32, {size}, seed++));
    }
    op.max_norm = max_norm;
    INFO(max_norm);
    CHECK(Inaccuracy(op, 1e-7) == "");
  }
}

TEST_CASE(
    "grad-clip: a norm beyond float32 squares is right, and one that is not finite changes "
    "nothing") {
  Forward op;
  op.gradients = {FromValues(DType::kF32, {2}, {3e30, 4e30})};
  std::vector<Tensor> got = Outputs(op);
  CHECK(Get(got[1], 0) == doctest::Approx(5e30));
  CHECK(Get(got[0], 0) == doctest::Approx(0.6));
  op.gradients = {FromValues(DType::kF32, {2}, {1, NAN})};
  got = Outputs(op);
  CHECK(std::isnan(Get(got[1], 0)));
  CHECK(Get(got[0], 0) == 1);
  op.gradients = {FromValues(DType::kF32, {2}, {1, INFINITY})};
  got = Outputs(op);
  CHECK(Get(got[1], 0) == INFINITY);
  CHECK(Get(got[0], 0) == 1);
  op.max_norm = -1;
  CHECK(op.Validate().argument == "maxNorm");
  op.max_norm = NAN;
  CHECK(op.Validate().code == Code::kRange);
}

}  // namespace
}  // namespace varlen::grad_clip::testing
