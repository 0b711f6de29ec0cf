#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/linear/linear.h"

namespace varlen::linear::testing {
namespace {
using namespace varlen::testing;

TEST_CASE("linear: a worked example") {
  Forward op;
  op.x = FromValues(DType::kF32, {2, 3}, {1, 2, 3, -1, 0, 1});
  op.weight = FromValues(DType::kF32, {2, 3}, {1, 0, -1, 2, 1, 0});
  op.bias = FromValues(DType::kF32, {2}, {10, 20});
  const Tensor out = Outputs(op)[0];
  const std::vector<double> want = {8, 24, 8, 18};
  for (int64_t i = 0; i < 4; ++i) CHECK(Get(out, i) == want[static_cast<size_t>(i)]);

  Backward back;
  back.d_out = FromValues(DType::kF32, {2, 2}, {1, 2, 3, 4});
  back.x = op.x;
  back.weight = op.weight;
  const std::vector<std::vector<double>> wanted = {
      {5, 2, -1, 11, 4, -3}, {-2, 2, 6, -2, 4, 10}, {4, 6}};
  const std::vector<Tensor> got = Outputs(back);
  for (size_t n = 0; n < 3; ++n) {
    for (size_t i = 0; i < wanted[n].size(); ++i) {
      CHECK(Get(got[n], static_cast<int64_t>(i)) == wanted[n][i]);
    }
  }
}

TEST_CASE("linear: agrees with the reference for every dtype, odd sizes and any wanted gradients") {
  int turn = 0;
  for (DType dtype : kStorageTypes) {
    for (const auto& [rows, in, out] : {std::array<int64_t, 3>{1, 1, 1},
                                        {3, 7, 5},
                                        {65, 33, 48},
                                        {200, 96, 31},
                                        {0, 4, 3},
                                        {4, 0, 3}}) {
      Forward op;
      op.x = Random(dtype, {rows, in}, 1);
      op.weight = Random(dtype, {out, in}, 2, 0.3);
      if (++turn % 2 == 0) op.bias = Random(dtype, {out}, 3);
      INFO(NameOf(dtype) << " " << rows << " " << in << " " << out);
      CHECK(Inaccuracy(op, 1e-6) == "");
      Backward back;
      back.d_out = Random(dtype, {rows, out}, 4);
      back.x = op.x;
      back.weight = op.weight;
      CHECK(Inaccuracy(back, 2e-6) == "");
      back.want_x = turn % 3 == 0;
      back.want_weight = turn % 3 == 1;
      back.want_bias = turn % 3 == 2;
      CHECK(Outputs(back).size() == 1);
      CHECK(Inaccuracy(back, 2e-6) == "");
    }
  }
}

TEST_CASE("linear: leading dimensions of any number, and a row that depends on itself alone") {
  Forward op;
  op.x = Random(DType::kF32, {3, 5, 40}, 1);
  op.weight = Random(DType::kF32, {24, 40}, 2);
  op.bias = Random(DType::kF32, {24}, 3);
  const Tensor all = Outputs(op)[0];
  CHECK(all.rank == 3);
  CHECK(all.shape[2] == 24);
  for (int64_t r = 0; r < 15; ++r) {
    Forward one = op;
    one.x.rank = 1;
    one.x.shape = {40};
    one.x.strides = {1};
    one.x.offset += r * 40;
    const Tensor row = Outputs(one)[0];
    for (int64_t o = 0; o < 24; ++o) CHECK(Get(row, o) == Get(all, r * 24 + o));
  }
}

}  // namespace
}  // namespace varlen::linear::testing
