#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/write-rows/write-rows.h"

namespace varlen::write_rows::testing {
namespace {
using namespace varlen::testing;

std::vector<int32_t> Rows(int64_t count, int64_t num_rows) {
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < count; ++t) {
    rows.push_back(static_cast<int32_t>((t * t * 7 + t * 3) % num_rows));
  }
  return rows;
}

TEST_CASE("write-rows: replaces the rows it names and no others; the last of two wins") {
  Forward op;
  op.target = {FromValues(DType::kF32, {3, 2}, {1, 2, 3, 4, 5, 6})};
  op.rows = Host(std::vector<int32_t>{2, 0, 2});
  op.values = FromValues(DType::kF32, {3, 2}, {10, 20, 30, 40, 50, 60});
  const Tensor target = op.target[0];
  CHECK(op.Validate().ok());
  CHECK(Run(op).ok());
  const std::vector<double> want = {30, 40, 3, 4, 50, 60};
  for (int64_t i = 0; i < 6; ++i) CHECK(Get(target, i) == want[static_cast<size_t>(i)]);
}

TEST_CASE("write-rows: agrees with the reference for every dtype, size and place of the rows") {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, num_rows, width] : {std::array<int64_t, 3>{1, 1, 1},
                                                  {17, 5, 3},
                                                  {1000, 97, 33},
                                                  {5000, 3000, 130},
                                                  {0, 4, 8},
                                                  {3, 4, 0}}) {
      Forward op;
      op.target = {Random(dtype, {num_rows, width}, 1)};
      op.values = Random(dtype, {tokens, width}, 2);
      INFO(NameOf(dtype) << " " << tokens << " " << num_rows << " " << width);
      op.rows = Host(Rows(tokens, num_rows));
      CHECK(Inaccuracy(op, 0) == "");
      op.rows = OnDevice(Rows(tokens, num_rows));
      CHECK(Inaccuracy(op, 0) == "");
    }
  }
}

TEST_CASE("write-rows: refuses rows outside the target, early on the host and late in a tensor") {
  Forward op;
  op.target = {Random(DType::kF32, {4, 2}, 1)};
  op.values = Random(DType::kF32, {2, 2}, 2);
  for (int32_t bad : {-1, 4, 1 << 30}) {
    op.rows = Host(std::vector<int32_t>{0, bad});
    CHECK(op.Validate().code == Code::kIndex);
    op.rows = OnDevice({0, bad});
    CHECK(op.Validate().ok());
    CHECK(Run(op).code == Code::kIndex);
  }
  op.rows = Host(std::vector<int32_t>{0, 1});
  op.values = Random(DType::kF32, {2, 3}, 2);
  CHECK(op.Validate().code == Code::kShape);
  op.values = Random(DType::kBF16, {2, 2}, 2);
  CHECK(op.Validate().code == Code::kDType);
}

}  // namespace
}  // namespace varlen::write_rows::testing
