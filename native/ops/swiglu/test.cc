#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/swiglu/swiglu.h"

namespace varlen::swiglu::testing {
namespace {
using namespace varlen::testing;

TEST_CASE("swiglu: values that a hand can check, and gates far out") {
  Forward op;
  op.gate = FromValues(DType::kF32, {4}, {0, 200, -200, std::log(3.0)});
  op.up = FromValues(DType::kF32, {4}, {5, 2, 2, 4});
  const std::vector<double> want = {0, 400, 0, 3 * std::log(3.0)};  // sig(ln 3) = 3/4
  const Tensor out = Outputs(op)[0];
  for (int64_t i = 0; i < 4; ++i) {
    CHECK(std::abs(Get(out, i) - want[static_cast<size_t>(i)]) <= 1e-6);
  }
}

TEST_CASE("swiglu: agrees with the reference for every dtype and odd sizes") {
  for (DType dtype : kStorageTypes) {
    for (int64_t size : {0, 1, 15, 17, 1000, 40001}) {
      Forward op;
      op.gate = Random(dtype, {size}, 1, 3);
      op.up = Random(dtype, {size}, 2);
      INFO(NameOf(dtype) << " " << size);
      CHECK(Inaccuracy(op, 1e-6) == "");
      Backward back;
      back.d_out = Random(dtype, {size}, 3);
      back.gate = op.gate;
      back.up = op.up;
      CHECK(Inaccuracy(back, 1e-6) == "");
    }
  }
}

TEST_CASE("swiglu: NaN stays in its own element") {
  Forward op;
  op.gate = FromValues(DType::kF32, {3}, {1, NAN, 2});
  op.up = FromValues(DType::kF32, {3}, {1, 1, NAN});
  const Tensor out = Outputs(op)[0];
  CHECK(std::isfinite(Get(out, 0)));
  CHECK(std::isnan(Get(out, 1)));
  CHECK(std::isnan(Get(out, 2)));
}

}  // namespace
}  // namespace varlen::swiglu::testing
