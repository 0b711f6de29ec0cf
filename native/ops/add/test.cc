#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/add/add.h"

namespace varlen::add::testing {
namespace {
using namespace varlen::testing;

TEST_CASE("add: agrees with the reference for every dtype and odd sizes") {
  for (DType dtype : kStorageTypes) {
    for (int64_t size : {0, 1, 16, 33, 70001}) {
      Forward op;
      op.a = Random(dtype, {size}, 1);
      op.b = Random(dtype, {size}, 2);
      INFO(NameOf(dtype) << " " << size);
      CHECK(Inaccuracy(op, 1e-7) == "");
    }
  }
}

TEST_CASE("add: rounds the sum of 16-bit numbers once, ties to even") {
  Forward op;
  op.a = FromValues(DType::kBF16, {2}, {256, 256});
  op.b = FromValues(DType::kBF16, {2}, {1, 3});  // 257 and 259 lie between multiples of 2
  const Tensor out = Outputs(op)[0];
  CHECK(Get(out, 0) == 256);
  CHECK(Get(out, 1) == 260);
}

}  // namespace
}  // namespace varlen::add::testing
