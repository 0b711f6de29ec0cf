#include "doctest/doctest.h"
#include "ops/compress-visual-tokens/test-case.h"

namespace varlen::compress_visual_tokens::testing {
namespace {

Forward Example(const std::vector<int32_t>& targets) {
  Forward op = Op(DType::kF32, {0, 6}, 2, targets);
  op.features = FromValues(DType::kF32, {6, 2}, {1, 0, .98, .2, 0, 1, .1, .99, .7, .7, 1, .05});
  return op;
}

void CheckValues(const Tensor& got, const std::vector<double>& want) {
  REQUIRE(got.size() >= static_cast<int64_t>(want.size()));
  for (size_t i = 0; i < want.size(); ++i) {
    CHECK(Get(got, static_cast<int64_t>(i)) == doctest::Approx(want[i]).epsilon(1e-6));
  }
}

TEST_CASE("compress visual tokens: the worked example, by threshold") {
  Forward op = Example({6});
  op.threshold = .95;
  auto outputs = Outputs(op);
  CheckValues(outputs[0], {.99333333, .08333333, .05, .995, .7, .7, 0, 0, 0, 0, 0, 0});
  CheckValues(outputs[1], {0, 2, 4, 0, 0, 0});
  CheckValues(outputs[2], {0, 0, 1, 1, 2, 0});
  CheckValues(outputs[3], {3, 2, 1, 0, 0, 0});
  CheckValues(outputs[5], {0, 3});
  op.prune = true;
  CheckValues(Outputs(op)[0], {1, 0, 0, 1, .7, .7, 0, 0});
}

TEST_CASE("compress visual tokens: the worked example, one round") {
  auto outputs = Outputs(Example({4}));
  CheckValues(outputs[0], {.98, .2, .05, .995, .7, .7, 1, .025});
  CheckValues(outputs[1], {1, 3, 4, 5});
  CheckValues(outputs[2], {3, 0, 1, 1, 2, 3});
  CheckValues(outputs[3], {1, 2, 1, 2});
  CheckValues(outputs[4], {1, 3, 4, 5});
}

TEST_CASE("compress visual tokens: agrees with the reference in every mode and dtype") {
  const std::vector<int32_t> offsets{0, 1, 1, 3, 40, 41 + 128, 300};
  for (DType dtype : kStorageTypes) {
    for (const std::vector<int32_t>& targets :
         {std::vector<int32_t>{1, 0, 2, 37, 129, 131}, {1, 0, 1, 20, 70, 66}, {1, 0, 1, 2, 9, 1}}) {
      for (double threshold : {-1.0, 0.3, 0.9}) {
        for (int flags = 0; flags < 4; ++flags) {
          CAPTURE(threshold);
          CAPTURE(flags);
          Forward op = Op(dtype, offsets, 24, targets);
          op.threshold = threshold;
          op.uniform = (flags & 1) != 0;
          op.prune = (flags & 2) != 0;
          op.frame_tokens = flags == 1 ? 7 : 0;
          if (flags == 2) op.metric = Random(DType::kF32, {300, 8}, 2);
          CHECK(Inaccuracy(op, 1e-5) == "");
        }
      }
    }
  }
}

TEST_CASE("compress visual tokens: protected tokens stay, minimums are kept") {
  for (double threshold : {-1.0, 0.2}) {
    Forward op = Op(DType::kF32, {0, 100, 160}, 16, {50, 31});
    std::vector<int32_t> mask(160, 0);
    for (int x = 0; x < 100; x += 2) mask[static_cast<size_t>(x)] = 1;  // all of A
    for (int x : {100, 101, 150}) mask[static_cast<size_t>(x)] = 1;
    op.protected_mask = Host(mask);
    op.threshold = threshold;
    op.minimums = Host(std::vector<int32_t>{50, 31});
    CHECK(Inaccuracy(op, 1e-5) == "");
    const auto outputs = Outputs(op);
    CheckValues(outputs[5], {0, 50, 81});
    for (int64_t row = 0; row < 81; ++row) {
      const auto x = static_cast<int64_t>(Get(outputs[1], row));
      if (mask[static_cast<size_t>(x)] == 0) continue;
      for (int64_t d = 0; d < 16; ++d) {
        CHECK(Get(outputs[0], row * 16 + d) == Get(op.features, x * 16 + d));
      }
    }
  }
}

TEST_CASE("compress visual tokens: zeros and NaN are similar to nothing") {
  // Nothing is less than opposite: the zeros go first, to the lower of two that they meet with 0.
  Forward small = Op(DType::kF32, {0, 4}, 2, {3});
  small.features = FromValues(DType::kF32, {4, 2}, {1, 0, -1, 0, 0, 0, -1, -.1});
  CheckValues(Outputs(small)[2], {0, 1, 1, 2});
  Forward op = Op(DType::kF32, {0, 40}, 16, {22});
  for (int64_t d = 0; d < 16; ++d) Set(op.features, 6 * 16 + d, 0);
  CHECK(Inaccuracy(op, 1e-5) == "");
  Set(op.features, 8 * 16, NAN);
  const auto outputs = Outputs(op);
  bool alone = false;
  for (int64_t row = 0; row < 22; ++row) {
    if (Get(outputs[1], row) == 8) alone = Get(outputs[3], row) == 1;
  }
  CHECK(alone);
}

TEST_CASE("compress visual tokens: of equals the lower position is taken, and goes first") {
  Forward op = Op(DType::kF32, {0, 4}, 2, {3});
  op.features = FromValues(DType::kF32, {4, 2}, {1, 1, 1, 0, 1, 1, 0, 1});
  auto outputs = Outputs(op);
  CheckValues(outputs[1], {1, 2, 3});
  CheckValues(outputs[2], {0, 0, 1, 2});
  op = Op(DType::kF32, {0, 3}, 2, {3});
  op.features = FromValues(DType::kF32, {3, 2}, {1, 0, 0, 1, 1, 1});
  op.threshold = .5;
  CheckValues(Outputs(op)[2], {0, 1, 0});
}

TEST_CASE("compress visual tokens: weights are what each token's features count in their row") {
  for (double threshold : {-1.0, 0.3}) {
    for (int flags = 0; flags < 8; ++flags) {
      CAPTURE(threshold);
      CAPTURE(flags);
      Forward op = Op(DType::kF32, {0, 70, 110}, 12, {9, 5});
      op.threshold = threshold;
      op.uniform = (flags & 1) != 0;
      op.prune = (flags & 2) != 0;
      if ((flags & 4) != 0) {
        std::vector<int32_t> mask(110, 0);
        for (size_t x : {3, 4, 80}) mask[x] = 1;
        op.protected_mask = Host(mask);
      }
      const auto outputs = Outputs(op);
      const Tensor &out = outputs[0], &assign = outputs[2], &weight = outputs[6];
      std::vector<double> sums(static_cast<size_t>(out.size()), 0.0);
      for (int64_t x = 0; x < 110; ++x) {
        for (int64_t d = 0; d < 12; ++d) {
          const auto at = static_cast<size_t>(Get(assign, x) * 12) + static_cast<size_t>(d);
          sums[at] += Get(weight, x) * Get(op.features, x * 12 + d);
        }
      }
      CheckValues(out, sums);
    }
  }
}

TEST_CASE("compress visual tokens: gradients agree with the reference in every dtype") {
  for (DType dtype : kStorageTypes) {
    for (int64_t hidden : {1, 16, 37}) {
      Backward op;
      op.d_out = Random(dtype, {5, hidden}, 3);
      op.assign = FromValues(DType::kI32, {7}, {0, 4, 1, 2, 1, 3, 0});
      op.weight = FromValues(DType::kF32, {7}, {.5, 1, .25, 0, .75, 1, .5});
      CHECK(Inaccuracy(op, 1e-6) == "");
      Set(op.d_out, 2 * hidden, NAN);  // token 3 is not in its row: nothing comes from it
      CHECK(Get(Outputs(op)[0], 3 * hidden) == 0);
    }
  }
}

TEST_CASE("compress visual tokens: refuses targets that cannot be met") {
  const auto code = [](const Forward& op) { return op.Validate().code; };
  CHECK(code(Op(DType::kF32, {0, 6}, 2, {7})) == Code::kRange);
  CHECK(code(Op(DType::kF32, {0, 6}, 2, {0})) == Code::kRange);
  Forward op = Example({3});
  op.protected_mask = Host(std::vector<int32_t>{1, 1, 1, 1, 0, 0});
  CHECK(code(op) == Code::kRange);
  op = Example({3});
  op.minimums = Host(std::vector<int32_t>{4});
  CHECK(code(op) == Code::kRange);
  op = Example({3});
  op.threshold = 1.5;
  CHECK(code(op) == Code::kRange);
  for (const std::vector<int32_t>& offsets : {std::vector<int32_t>{0, 5}, {1, 6}, {0, 7, 6}}) {
    op = Example({3});
    op.image_offsets = Host(offsets);
    CHECK(code(op) == Code::kCuSeqlens);
  }
  op = Example({3});
  op.protected_mask = Host(std::vector<int32_t>(5, 0));
  CHECK(code(op) == Code::kShape);
  op = Example({3});
  op.minimums = Host(std::vector<int32_t>{});
  CHECK(code(op) == Code::kShape);
  op = Example({3});
  op.image_offsets = OnDevice({0, 6});
  CHECK(code(op) == Code::kType);
}

}  // namespace
}  // namespace varlen::compress_visual_tokens::testing
