#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/rms-norm/rms-norm.h"

namespace varlen::rms_norm::testing {
namespace {
using namespace varlen::testing;

TEST_CASE("rms-norm: a worked example") {
  Forward op;
  op.x = FromValues(DType::kF32, {1, 4}, {1, -1, 2, 0});
  op.residual = FromValues(DType::kF32, {1, 4}, {0, 2, 1, 1});
  op.weight = FromValues(DType::kF32, {4}, {1, 2, 0.5, -1});
  op.eps = 1;  // h = 1 1 3 1, mean of squares 3, s = 1/2
  const std::vector<Tensor> got = Outputs(op);
  const std::vector<std::vector<double>> want = {{0.5, 1, 0.75, -0.5}, {0.5}, {1, 1, 3, 1}};
  for (size_t n = 0; n < want.size(); ++n) {
    for (size_t i = 0; i < want[n].size(); ++i) {
      CHECK(Get(got[n], static_cast<int64_t>(i)) == want[n][i]);
    }
  }
}

TEST_CASE(
    "rms-norm: agrees with the reference for every dtype, odd sizes, with and without extras") {
  for (DType dtype : kStorageTypes) {
    int turn = 0;
    for (const auto& [rows, hidden] : {std::pair<int64_t, int64_t>{1, 1},
                                       {3, 7},
                                       {33, 16},
                                       {130, 96},
                                       {7, 257},
                                       {4000, 24},
                                       {0, 8}}) {
      Forward op;
      op.x = Random(dtype, {rows, hidden}, 1);
      op.weight = Random(dtype, {hidden}, 2);
      if (++turn % 2 == 0) op.residual = Random(dtype, {rows, hidden}, 3);
      op.weight_offset = turn % 3 == 0 ? 1.0f : 0.0f;
      INFO(NameOf(dtype) << " " << rows << " " << hidden);
      CHECK(Inaccuracy(op, 2e-6) == "");
      const std::vector<Tensor> forward = Outputs(op);
      Backward back;
      back.d_out = Random(dtype, {rows, hidden}, 4);
      if (turn % 2 == 0) back.d_sum = Random(dtype, {rows, hidden}, 5);
      back.sum = op.residual ? forward[2] : op.x;
      back.weight = op.weight;
      back.scale = forward[1];
      back.weight_offset = op.weight_offset;
      CHECK(Inaccuracy(back, 4e-6) == "");
    }
  }
}

TEST_CASE("rms-norm: a row of zeros stays zero, and a wrong eps or offset is refused") {
  Forward op;
  op.x = FromValues(DType::kF32, {1, 3}, {0, 0, 0});
  op.weight = FromValues(DType::kF32, {3}, {1, 1, 1});
  for (int64_t i = 0; i < 3; ++i) CHECK(Get(Outputs(op)[0], i) == 0);
  op.eps = -1;
  CHECK(op.Validate().argument == "eps");
  op.eps = NAN;
  CHECK(op.Validate().code == Code::kRange);
  op.eps = 0;
  op.weight_offset = 0.5f;
  CHECK(op.Validate().argument == "weightOffset");
}

}  // namespace
}  // namespace varlen::rms_norm::testing
