#include <cmath>
#include <limits>

#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/sparse-prefill/test-merge-case.h"

namespace varlen::sparse_prefill {
namespace {

using namespace varlen::testing;

TEST_CASE("merged attention agrees with the reference in every dtype") {
  for (DType dtype : kStorageTypes) {
    for (int64_t dim : {8, 37, 128}) {
      CHECK(Inaccuracy(MergeOf(dtype, 23, 3, dim), 2e-6) == "");
    }
  }
}

TEST_CASE("the gradient of merged attention agrees with the reference in every dtype") {
  for (DType dtype : kStorageTypes) {
    for (int64_t dim : {8, 37, 128}) {
      MergeBackward op = MergeBackwardOf(MergeOf(dtype, 23, 3, dim));
      CHECK(Inaccuracy(op, 2e-5) == "");
      op.d_lse = {};
      CHECK(Inaccuracy(op, 2e-5) == "");
    }
  }
}

TEST_CASE("rows that one result or both have no keys for take their gradient alone, or none") {
  const float none = -std::numeric_limits<float>::infinity();
  Merge merge = MergeOf(DType::kF32, 4, 2, 8);
  for (int64_t head : {0, 4}) {
    merge.lse1.data<float>()[head] = merge.lse1.data<float>()[head + 2] = none;
    merge.lse2.data<float>()[head + 1] = merge.lse2.data<float>()[head + 2] = none;
  }
  Set(merge.out1, 0, NAN);  // of a row that lse1 says is none
  const MergeBackward op = MergeBackwardOf(merge);
  const auto got = Outputs(op);
  for (int64_t i = 0; i < 8; ++i) {
    CHECK(Get(got[0], i) == 0);
    CHECK(Get(got[2], i) == Get(op.d_out, i));
    CHECK(Get(got[0], 2 * 16 + i) == 0);
    CHECK(Get(got[2], 2 * 16 + i) == 0);
  }
  CHECK(Get(got[1], 0) == 0);
  CHECK(Get(got[3], 0) == Get(op.d_lse, 0));
  CHECK(Get(got[1], 1) == Get(op.d_lse, 1));
  CHECK(Get(got[1], 2) == 0);
  CHECK(Get(got[3], 2) == 0);
}

TEST_CASE("the reference's gradients of a merge are the differences of its results") {
  Merge merge = MergeOf(DType::kF32, 5, 2, 8);
  for (Tensor Merge::*input : {&Merge::out1, &Merge::out2, &Merge::lse1, &Merge::lse2}) {
    merge.*input = CopyAs(merge.*input, DType::kF64);
  }
  const MergeBackward backward = MergeBackwardOf(merge);
  const auto loss = [&] {
    const auto results = ReferenceOutputs(merge);
    double sum = 0;
    for (int64_t i = 0; i < results[0].size(); ++i) {
      sum += Get(backward.d_out, i) * Get(results[0], i);
    }
    for (int64_t i = 0; i < results[1].size(); ++i) {
      sum += Get(backward.d_lse, i) * Get(results[1], i);
    }
    return sum;
  };
  const auto gradients = ReferenceOutputs(backward);
  size_t n = 0;
  for (Tensor Merge::*input : {&Merge::out1, &Merge::lse1, &Merge::out2, &Merge::lse2}) {
    for (int64_t i = 0; i < (merge.*input).size(); ++i) {
      double& x = (merge.*input).data<double>()[i];
      const double at = x, step = 1e-5;
      x = at + step;
      const double above = loss();
      x = at - step;
      const double below = loss();
      x = at;
      CHECK((above - below) / (2 * step) ==
            doctest::Approx(Get(gradients[n], i)).epsilon(1e-7).scale(1));
    }
    ++n;
  }
}

}  // namespace
}  // namespace varlen::sparse_prefill
