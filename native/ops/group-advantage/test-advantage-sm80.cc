#include <cmath>
#include <cstring>
#include <vector>

#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/group-advantage/device.h"
#include "ops/group-advantage/group-advantage.h"

// The kernel, run by the host emulator, against the float64 reference.
namespace varlen::group_advantage {
namespace {

struct Result {
  std::vector<double> advantages;
  std::vector<uint8_t> refusals;
};

Result Emulate(const Forward& p, uint64_t seed = 0, int64_t blocks = 2) {
  const int64_t n = p.rewards.shape[0];
  const simt::GlobalArray<float> rewards(p.rewards.data<float>(), n), advantages(n);
  const simt::GlobalArray<int32_t> groups(p.group_ids.data(), n);
  const simt::GlobalArray<int32_t> lengths(p.lengths ? p.lengths.data() : nullptr,
                                           p.lengths ? n : 0);
  const simt::GlobalArray<uint8_t> refusals(n);
  const auto result = simt::Launch<GroupAdvantage>(
      blocks, GroupAdvantage::kSharedBytes,
      {rewards.data(), groups.data(), p.lengths ? lengths.data() : nullptr, n,
       static_cast<Estimator>(p.estimator), static_cast<Singleton>(p.singleton), p.eps,
       advantages.data(), refusals.data()},
      {.seed = seed});
  CHECK(std::string(result.message()) == "");
  return {{advantages.begin(), advantages.end()}, {refusals.begin(), refusals.end()}};
}

// Groups far apart, negative too; answers not scored, without tokens, equal to one another.
Forward RandomGroups(int estimator, uint32_t seed, int64_t num_seqs) {
  Forward p;
  p.rewards = testing::Random(DType::kF32, {num_seqs}, seed);
  std::vector<int32_t> groups, lengths;
  for (int64_t i = 0; i < num_seqs; ++i) {
    groups.push_back(static_cast<int32_t>((i * 7919 % (num_seqs / 4 + 1)) * 65536 - 70000));
    lengths.push_back(static_cast<int32_t>(i * 31 % 6));
    float& reward = p.rewards.data<float>()[i];
    if (estimator == static_cast<int>(Estimator::kMaxRl)) reward = std::abs(reward) + 0.1f;
    if (i % 11 == 3) reward = NAN;
    if (i % 5 == 0) reward = 0.5f;
  }
  p.group_ids = testing::Host(groups);
  p.lengths = testing::Host(lengths);
  p.estimator = estimator;
  return p;
}

TEST_CASE("CUDA group advantages: every estimator agrees with the reference in any order") {
  for (int estimator = 0; estimator < 7; ++estimator) {
    for (uint32_t seed = 1; seed <= 4; ++seed) {
      CAPTURE(estimator);
      CAPTURE(seed);
      Forward p = RandomGroups(estimator, seed, 1 + 37 * seed);
      if (estimator != static_cast<int>(Estimator::kOpo) && seed == 2) p.lengths = {};
      const Result got = Emulate(p, seed, 1 + seed);
      const Tensor want = testing::ReferenceOutputs(p)[0];
      const int64_t n = p.rewards.shape[0];
      CHECK(testing::Difference(testing::FromValues(DType::kF32, {n}, got.advantages), want,
                                2e-7) == "");
      for (uint8_t refusal : got.refusals) CHECK(refusal == 0);
    }
  }
}

TEST_CASE("CUDA group advantages: the first of equal best answers wins, across lanes too") {
  for (int64_t apart : {1, 31, 32, 33}) {
    CAPTURE(apart);
    std::vector<double> rewards(80, 0);
    rewards[3] = rewards[static_cast<size_t>(3 + apart)] = 2;
    Forward p;
    p.rewards = testing::FromValues(DType::kF32, {80}, rewards);
    p.group_ids = testing::Host(std::vector<int32_t>(80, 7));
    p.estimator = static_cast<int64_t>(Estimator::kPassK);
    // The best is no better than the second.
    for (double advantage : Emulate(p).advantages) CHECK(advantage == 0);
    p.rewards.data<float>()[3] = 3;
    const Result got = Emulate(p);
    const Tensor want = testing::ReferenceOutputs(p)[0];
    CHECK(got.advantages[3] > 0);
    CHECK(testing::Difference(testing::FromValues(DType::kF32, {80}, got.advantages), want, 2e-7) ==
          "");
  }
}

TEST_CASE("CUDA group advantages: any grid and any order of warps gives the same bits") {
  const Forward p = RandomGroups(0, 3, 150);
  const std::vector<double> one = Emulate(p, 0, 1).advantages;
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const std::vector<double> again = Emulate(p, seed, static_cast<int64_t>(seed)).advantages;
    CHECK(std::memcmp(again.data(), one.data(), one.size() * sizeof(double)) == 0);
  }
}

TEST_CASE("CUDA group advantages: refused groups are named at their first answer") {
  Forward p;
  p.rewards = testing::FromValues(DType::kF32, {6}, {NAN, -1, 5, 0, 2, 3});
  p.group_ids = testing::Host(std::vector<int32_t>{4, 9, 4, 9, 1, 1});
  p.singleton = static_cast<int64_t>(Singleton::kRaw);
  const Result raw = Emulate(p);
  CHECK(raw.advantages[2] == 5);
  CHECK(raw.refusals == std::vector<uint8_t>(6, 0));
  p.singleton = static_cast<int64_t>(Singleton::kError);
  p.estimator = static_cast<int64_t>(Estimator::kMaxRl);
  const auto singleton = static_cast<uint8_t>(Refusal::kSingleton);
  const auto mean = static_cast<uint8_t>(Refusal::kMean);
  CHECK(Emulate(p).refusals == std::vector<uint8_t>{singleton, mean, 0, 0, 0, 0});
}

}  // namespace
}  // namespace varlen::group_advantage
