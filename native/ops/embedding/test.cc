#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/embedding/embedding.h"

namespace varlen::embedding::testing {
namespace {
using namespace varlen::testing;

std::vector<int32_t> Ids(int64_t count, int64_t vocab_size) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < count; ++t) {
    ids.push_back(static_cast<int32_t>((t * t * 7 + t * 3) % vocab_size));
  }
  return ids;
}

TEST_CASE("embedding: picks rows, and adds gradients of a repeated row") {
  Forward op;
  op.weight = FromValues(DType::kF32, {3, 2}, {1, 2, 3, 4, 5, 6});
  op.ids = Host(std::vector<int32_t>{2, 0, 2});
  const std::vector<double> want = {5, 6, 1, 2, 5, 6};
  const Tensor out = Outputs(op)[0];
  for (int64_t i = 0; i < 6; ++i) CHECK(Get(out, i) == want[static_cast<size_t>(i)]);

  Backward back;
  back.d_out = FromValues(DType::kF32, {3, 2}, {1, 10, 2, 20, 4, 40});
  back.weight = op.weight;
  back.ids = op.ids;
  const std::vector<double> want_gradient = {2, 20, 0, 0, 5, 50};
  const Tensor d_weight = Outputs(back)[0];
  for (int64_t i = 0; i < 6; ++i) CHECK(Get(d_weight, i) == want_gradient[static_cast<size_t>(i)]);
}

TEST_CASE("embedding: agrees with the reference for every dtype and odd sizes") {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, vocab_size, hidden] : {std::array<int64_t, 3>{1, 1, 1},
                                                     {17, 5, 3},
                                                     {1000, 97, 33},
                                                     {300, 1000, 130},
                                                     {0, 4, 8}}) {
      Forward op;
      op.weight = Random(dtype, {vocab_size, hidden}, 1);
      op.ids = Host(Ids(tokens, vocab_size));
      INFO(NameOf(dtype) << " " << tokens << " " << vocab_size << " " << hidden);
      CHECK(Inaccuracy(op, 0) == "");
      Backward back;
      back.d_out = Random(dtype, {tokens, hidden}, 2);
      back.weight = op.weight;
      back.ids = OnDevice(Ids(tokens, vocab_size));
      CHECK(Inaccuracy(back, 1e-6) == "");
    }
  }
}

TEST_CASE("embedding: refuses ids outside the table, early on the host and late in a tensor") {
  Forward op;
  op.weight = Random(DType::kF32, {4, 2}, 1);
  for (int32_t bad : {-1, 4, 1 << 30}) {
    op.ids = Host(std::vector<int32_t>{0, bad});
    Status status = op.Validate();
    CHECK(status.code == Code::kIndex);
    CHECK(status.argument == "ids");
    op.ids = OnDevice({0, bad});
    CHECK(op.Validate().ok());
    (void)Outputs(op, &status);
    CHECK(status.code == Code::kIndex);
  }
}

}  // namespace
}  // namespace varlen::embedding::testing
