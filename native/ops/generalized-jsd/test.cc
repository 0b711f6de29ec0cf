#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/generalized-jsd/generalized-jsd.h"

namespace varlen::generalized_jsd::testing {
namespace {
using namespace varlen::testing;

constexpr float kBetas[] = {0.0f, 0.1f, 0.5f, 0.9f, 1.0f};

Backward BackwardOf(const Forward& forward, uint32_t seed = 9) {
  const std::vector<Tensor> out = Outputs(forward);
  Backward op;
  op.d_loss = FromValues(DType::kF32, {}, {1.25});
  op.d_per_token = Random(DType::kF32, {forward.student.shape[0]}, seed);
  op.student = forward.student;
  op.teacher = forward.teacher;
  op.loss_mask = forward.loss_mask;
  op.options = forward.options;
  op.coefficients = out[2];
  op.student_lse = out[3];
  op.teacher_lse = out[4];
  op.inner = out[5];
  return op;
}

// Student [2, 1, 0, -1], teacher [1, 2, 0.5, -2]: the table of the specification.
TEST_CASE("generalizedJsd: the numbers of the worked example") {
  struct Want {
    float beta, temperature;
    double loss, gradient[4];
  };
  for (const Want& want :
       {Want{0, 1, .41510399, {.41532191, -.38449562, -.05150395, .02067766}},
        Want{.5f, 1, .10164347, {.09319833, -.08220592, -.01563248, .00464007}},
        Want{1, 1, .43114317, {.38923465, -.33057421, -.07803930, .01937885}},
        Want{.5f, 2, .02599779, {.02231590, -.02083738, -.00645787, .00497935}}}) {
    Forward op;
    op.student = FromValues(DType::kF32, {1, 4}, {2, 1, 0, -1});
    op.teacher = FromValues(DType::kF32, {1, 4}, {1, 2, .5, -2});
    op.options.beta = want.beta;
    op.options.temperature = want.temperature;
    Backward back = BackwardOf(op);
    back.d_loss = FromValues(DType::kF32, {}, {1});
    back.d_per_token = {};
    CHECK(std::abs(Get(Outputs(op)[0], 0) - want.loss) < 1e-7);
    CHECK(std::abs(Get(ReferenceOutputs(op)[0], 0) - want.loss) < 1e-8);
    for (int64_t v = 0; v < 4; ++v) {
      CHECK(std::abs(Get(Outputs(back)[0], v) - want.gradient[v]) < 1e-7);
      CHECK(std::abs(Get(ReferenceOutputs(back)[0], v) - want.gradient[v]) < 1e-8);
    }
  }
}

Tensor Mask(int64_t tokens) {
  Tensor mask = Tensor::Empty(DType::kU8, {tokens});
  for (int64_t t = 0; t < tokens; ++t) mask.data<uint8_t>()[t] = t % 3 == 1 ? 0 : 1;
  return mask;
}

TEST_CASE(
    "generalizedJsd: both passes agree with the reference, with the same bits on any threads") {
  for (DType dtype : kStorageTypes) {
    for (int64_t vocab : {1, 8, 41, 1271, 4096}) {
      for (float beta : kBetas) {
        Forward op;
        op.student = Random(dtype, {5, vocab}, 1, 2);
        op.teacher = Random(vocab == 41 ? DType::kBF16 : dtype, {5, vocab}, 2, 2);
        op.options.beta = beta;
        if (vocab == 41) {
          op.loss_mask = Mask(5);
          op.weights = FromValues(DType::kF32, {5}, {1, NAN, 0.5, 0, 2});
          op.logprobs = Random(DType::kF32, {5}, 3);
          op.old_logprobs = Random(DType::kF32, {5}, 4);
          op.is_clip = 2;
          op.options = {beta, 2.0f, 5.0f, 1.5f, -6.0f, 4.0f};
        }
        INFO(NameOf(dtype) << " vocab " << vocab << " beta " << beta);
        CHECK(Inaccuracy(op, 2e-6) == "");
        CHECK(Inaccuracy(BackwardOf(op), 3e-6) == "");
      }
    }
  }
}

TEST_CASE("generalizedJsd: the reference's gradient is the difference of its loss") {
  for (float beta : kBetas) {
    Forward op;
    op.student = Random(DType::kF64, {3, 5}, 1);
    op.teacher = Random(DType::kF64, {3, 5}, 2);
    op.options = {beta, 0.75f, 4.0f, 1.25f, 0, 1};
    Forward rounded = op;
    rounded.student = CopyAs(op.student, DType::kF32);
    rounded.teacher = CopyAs(op.teacher, DType::kF32);
    Backward back = BackwardOf(rounded);
    back.student = op.student;
    back.teacher = op.teacher;
    const Tensor gradient = ReferenceOutputs(back)[0];
    const auto total = [&] {
      const std::vector<Tensor> out = ReferenceOutputs(op);
      double sum = 1.25 * Get(out[0], 0);
      for (int64_t t = 0; t < 3; ++t) sum += Get(back.d_per_token, t) * Get(out[1], t);
      return sum;
    };
    for (int64_t i = 0; i < 15; ++i) {
      const double at = Get(op.student, i), step = 1e-5;
      Set(op.student, i, at + step);
      const double above = total();
      Set(op.student, i, at - step);
      const double below = total();
      Set(op.student, i, at);
      CHECK(std::abs((above - below) / (2 * step) - Get(gradient, i)) < 1e-8);
    }
  }
}

TEST_CASE("generalizedJsd: never negative, 0 for equal sides, bounded, symmetric at 0.5") {
  for (float beta : kBetas) {
    Forward op;
    op.student = Random(DType::kF32, {20, 60}, 1, 3);
    op.teacher = Random(DType::kF32, {20, 60}, 2, 3);
    op.options.beta = beta;
    const double bound =
        beta == 0 || beta == 1 ? 1e30 : -beta * std::log(beta) - (1 - beta) * std::log(1 - beta);
    const std::vector<Tensor> out = Outputs(op), back = Outputs(BackwardOf(op));
    for (int64_t t = 0; t < 20; ++t) {
      CHECK(Get(out[1], t) >= 0);
      CHECK(Get(out[1], t) <= bound + 1e-6);
      double sum = 0;
      for (int64_t v = 0; v < 60; ++v) sum += Get(back[0], t * 60 + v);
      CHECK(std::abs(sum) < 2e-6);
    }
    Forward swapped = op;
    std::swap(swapped.student, swapped.teacher);
    if (beta == 0.5f) CHECK(Difference(Outputs(swapped)[1], out[1], 1e-6) == "");
    Forward same = op;
    same.teacher = same.student;
    for (int64_t t = 0; t < 20; ++t) CHECK(std::abs(Get(Outputs(same)[1], t)) < 1e-6);
  }
}

TEST_CASE("generalizedJsd: rows that do not count are not read, and none at all give 0") {
  Forward clean;
  clean.student = Random(DType::kF32, {4, 9}, 1);
  clean.teacher = Random(DType::kF32, {4, 9}, 2);
  clean.loss_mask = Mask(4);
  Forward dirty = clean;
  dirty.student = CopyAs(clean.student, DType::kF32);
  dirty.teacher = CopyAs(clean.teacher, DType::kF32);
  for (int64_t v = 0; v < 9; ++v) {
    Set(dirty.student, 9 + v, NAN);
    Set(dirty.teacher, 9 + v, NAN);
  }
  CHECK(BitDifference(Outputs(clean), Outputs(dirty)) == "");
  CHECK(BitDifference(Outputs(BackwardOf(clean)), Outputs(BackwardOf(dirty))) == "");
  std::fill_n(dirty.loss_mask.data<uint8_t>(), 4, uint8_t{0});
  CHECK(Get(Outputs(dirty)[0], 0) == 0);
  CHECK(Get(Outputs(dirty)[6], 0) == 0);
}

TEST_CASE(
    "generalizedJsd: what the teacher never says costs infinity under KL(q || p), unless floored") {
  Forward op;
  op.student = FromValues(DType::kF32, {1, 3}, {0, 0, 0});
  op.teacher = FromValues(DType::kF32, {1, 3}, {0, 0, -INFINITY});
  op.options.beta = 1;
  CHECK(Get(Outputs(op)[0], 0) == INFINITY);
  op.options.teacher_floor = -10;
  CHECK(Get(Outputs(op)[0], 0) < 10);
  op.options = {};
  op.options.beta = 0;
  CHECK(std::abs(Get(Outputs(op)[0], 0) - std::log(1.5)) < 1e-6);
  op.options.beta = 0.5f;
  CHECK(std::isfinite(Get(Outputs(op)[0], 0)));
}

}  // namespace
}  // namespace varlen::generalized_jsd::testing
