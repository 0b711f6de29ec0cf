#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/rope/rope.h"

namespace varlen::rope::testing {
namespace {
using namespace varlen::testing;

// cos and sin of p * 10000^(-2i/R).
Tensor Table(int64_t positions, int64_t rotary_dim) {
  Tensor table = Tensor::Empty(DType::kF32, {positions, rotary_dim});
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < rotary_dim / 2; ++i) {
      const double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
      Set(table, p * rotary_dim + i, std::cos(angle));
      Set(table, p * rotary_dim + rotary_dim / 2 + i, std::sin(angle));
    }
  }
  return table;
}

TEST_CASE("rope: a quarter turn, in both layouts of the pairs") {
  Forward op;
  op.x = FromValues(DType::kF32, {1, 1, 5}, {1, 2, 3, 4, 5});
  op.rotation.table = FromValues(DType::kF32, {1, 4}, {0, 1, 1, 0});  // 90 degrees, 0 degrees
  op.rotation.position_ids = Host(std::vector<int32_t>{0});
  const std::vector<double> halves = {-3, 2, 1, 4, 5}, pairs = {-2, 1, 3, 4, 5};
  for (int64_t i = 0; i < 5; ++i) CHECK(Get(Outputs(op)[0], i) == halves[static_cast<size_t>(i)]);
  op.rotation.interleaved = true;
  for (int64_t i = 0; i < 5; ++i) CHECK(Get(Outputs(op)[0], i) == pairs[static_cast<size_t>(i)]);
}

TEST_CASE("rope: agrees with the reference for every dtype, layout and odd size") {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, heads, head_dim, rotary_dim] : {std::array<int64_t, 4>{1, 1, 2, 2},
                                                              {5, 3, 7, 6},
                                                              {33, 2, 64, 64},
                                                              {400, 4, 80, 40},
                                                              {0, 2, 8, 8}}) {
      for (bool interleaved : {false, true}) {
        std::vector<int32_t> positions;
        for (int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int32_t>(t * 7 % 50));
        Forward op;
        op.x = Random(dtype, {tokens, heads, head_dim}, 1);
        op.rotation = {Table(50, rotary_dim), Host(positions), interleaved};
        INFO(NameOf(dtype) << " " << tokens << " " << heads << " " << head_dim);
        CHECK(Inaccuracy(op, 1e-6) == "");
        Backward back;
        back.d_out = op.x;
        back.rotation = op.rotation;
        back.rotation.position_ids = OnDevice(positions);
        CHECK(Inaccuracy(back, 1e-6) == "");
      }
    }
  }
}

TEST_CASE("rope: refuses positions past the table and tables that do not fit") {
  Forward op;
  op.x = Random(DType::kF32, {2, 1, 4}, 1);
  op.rotation = {Table(8, 4), Host(std::vector<int32_t>{0, 8}), false};
  CHECK(op.Validate().code == Code::kIndex);
  op.rotation.position_ids = OnDevice({0, -1});
  Status status;
  (void)Outputs(op, &status);
  CHECK(status.code == Code::kIndex);
  op.rotation.position_ids = Host(std::vector<int32_t>{0});
  CHECK(op.Validate().argument == "positionIds");
  op.rotation = {Table(8, 6), Host(std::vector<int32_t>{0, 1}), false};
  CHECK(op.Validate().argument == "table");
}

}  // namespace
}  // namespace varlen::rope::testing
