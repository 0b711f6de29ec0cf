#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/sampling/sampling.h"

namespace varlen::sampling::testing {
namespace {
using namespace varlen::testing;

// Random bits for u.
int32_t Bits(double u) { return static_cast<int32_t>(static_cast<uint32_t>(u * 4294967296.0)); }

std::vector<int32_t> RandomBits(int64_t count, uint32_t seed) {
  std::vector<int32_t> bits;
  uint32_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    bits.push_back(static_cast<int32_t>(state ^ (state << 16)));
  }
  return bits;
}

TEST_CASE("sampling: words in the order of their index, by their share") {
  Forward op;
  // Probabilities 1/2, 1/8, 1/4, 1/8.
  const std::vector<double> row = {std::log(4), std::log(1), std::log(2), std::log(1)};
  const auto token = [&](double u) {
    op.logits = FromValues(DType::kF32, {1, 4}, row);
    op.random = Host(std::vector<int32_t>{Bits(u)});
    return Get(Outputs(op)[0], 0);
  };
  CHECK(token(0) == 0);
  CHECK(token(0.49) == 0);
  CHECK(token(0.51) == 1);
  CHECK(token(0.7) == 2);
  CHECK(token(0.9999999) == 3);
  op.top_k = 2;  // words 0 and 2: 2/3, 1/3
  CHECK(token(0.66) == 0);
  CHECK(token(0.67) == 2);
  op.top_k = 0;
  op.top_p = 0.8f;  // 1/2 + 1/4 is not enough; of the equal words the first stays: 4/7, 1/7, 2/7
  CHECK(token(0.56) == 0);
  CHECK(token(0.58) == 1);
  CHECK(token(0.99) == 2);
  const std::vector<Tensor> got = Outputs(op);
  CHECK(Get(got[1], 0) == doctest::Approx(std::log(2.0 / 7)));
  CHECK(Get(got[2], 0) == doctest::Approx(std::log(1.0 / 4)));
  CHECK(Get(got[3], 0) == doctest::Approx(std::log(7.0 / 8)));
  op.top_p = 1;
  op.min_p = 0.4f;  // at least 0.4 of the largest: words 0 and 2
  CHECK(token(0.67) == 2);
  op.min_p = 0;
  op.temperature = 0;
  CHECK(token(0.99) == 0);
  op.temperature = 0.5f;  // squares: 16, 1, 4, 1
  CHECK(token(0.72) == 0);
  CHECK(token(0.74) == 1);
}

TEST_CASE(
    "sampling: agrees with the reference for every dtype, vocabulary and combination of filters") {
  uint32_t seed = 1;
  for (DType dtype : kStorageTypes) {
    for (int64_t words : {1, 2, 30, 255, 257, 5000}) {
      for (float temperature : {0.0f, 0.3f, 1.0f, 2.5f}) {
        for (int64_t top_k : {0, 1, 20, 100000}) {
          Forward op;
          const int64_t rows = words > 1000 ? 3 : 20;
          op.logits = Random(dtype, {rows, words}, seed, 3);
          op.random = Host(RandomBits(rows, seed++));
          op.temperature = temperature;
          op.top_k = top_k;
          op.top_p = seed % 3 == 0 ? 0.9f : seed % 3 == 1 ? 1.0f : 0.3f;
          op.min_p = seed % 2 == 0 ? 0.0f : 0.05f;
          INFO(NameOf(dtype) << " words " << words << " temperature " << temperature << " topK "
                             << top_k << " seed " << seed);
          CHECK(Inaccuracy(op, 2e-6) == "");
        }
      }
    }
  }
}

TEST_CASE("sampling: frequencies follow the distribution") {
  Forward op;
  constexpr int64_t kRows = 20000;
  op.logits = Tensor::Empty(DType::kF32, {kRows, 5});
  const double shares[5] = {0.4, 0, 0.3, 0.2, 0.1};
  for (int64_t i = 0; i < op.logits.size(); ++i) Set(op.logits, i, std::log(shares[i % 5]));
  op.random = Host(RandomBits(kRows, 7));
  const Tensor tokens = Outputs(op)[0];
  double counts[5] = {};
  for (int64_t row = 0; row < kRows; ++row) ++counts[static_cast<size_t>(Get(tokens, row))];
  CHECK(counts[1] == 0);
  for (int word = 0; word < 5; ++word) {
    CHECK(std::abs(counts[word] / kRows - shares[word]) < 0.015);  // four standard errors
  }
}

TEST_CASE("sampling: a row depends on itself alone") {
  Forward op;
  op.logits = Random(DType::kF32, {50, 100}, 3, 2);
  const std::vector<int32_t> bits = RandomBits(50, 5);
  op.random = Host(bits);
  op.top_p = 0.9f;
  const std::vector<Tensor> all = Outputs(op);
  for (int64_t row = 0; row < 50; row += 7) {
    Forward one = op;
    one.logits.offset = row * 100;
    one.logits.shape[0] = 1;
    one.random = Host(std::vector<int32_t>{bits[static_cast<size_t>(row)]});
    const std::vector<Tensor> alone = Outputs(one);
    for (size_t n = 0; n < 4; ++n) CHECK(Get(alone[n], 0) == Get(all[n], row));
  }
}

TEST_CASE("sampling: refuses numbers out of range, and rows without a distribution") {
  const auto argument = [](const auto& change) {
    Forward op;
    op.logits = Random(DType::kF32, {2, 4}, 1);
    op.random = Host(std::vector<int32_t>{1, 2});
    change(op);
    return op.Validate().argument;
  };
  CHECK(argument([](Forward&) {}) == "");
  CHECK(argument([](Forward& op) { op.random = Host(std::vector<int32_t>{1}); }) == "random");
  CHECK(argument([](Forward& op) { op.temperature = -1; }) == "temperature");
  CHECK(argument([](Forward& op) { op.temperature = NAN; }) == "temperature");
  CHECK(argument([](Forward& op) { op.top_k = -1; }) == "topK");
  CHECK(argument([](Forward& op) { op.top_p = 0; }) == "topP");
  CHECK(argument([](Forward& op) { op.top_p = 1.1f; }) == "topP");
  CHECK(argument([](Forward& op) { op.min_p = -0.1f; }) == "minP");
  CHECK(argument([](Forward& op) { op.logits = Random(DType::kF32, {2, 0}, 1); }) == "logits");
  for (double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    Forward op;
    op.logits = FromValues(DType::kF32, {2, 2}, {1, 2, bad, 0});
    op.random = Host(std::vector<int32_t>{1, 2});
    Status status;
    (void)Outputs(op, &status);
    CHECK(status.argument == "logits");
    CHECK(status.message.find("row 1") != std::string::npos);
  }
  Forward op;
  op.logits = FromValues(DType::kF32, {1, 2}, {-INFINITY, -INFINITY});
  op.random = Host(std::vector<int32_t>{1});
  Status status;
  (void)Outputs(op, &status);
  CHECK(!status.ok());
}

}  // namespace
}  // namespace varlen::sampling::testing
