#include <cmath>
#include <limits>

#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/group-advantage/group-advantage.h"

// The worked batch and literals of other projects' tests, then the reference on random groups.
namespace varlen::group_advantage {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Forward Of(Estimator estimator, const std::vector<double>& rewards, std::vector<int32_t> groups) {
  Forward p;
  p.rewards = testing::FromValues(DType::kF32, {static_cast<int64_t>(rewards.size())}, rewards);
  p.group_ids = testing::Host(std::move(groups));
  p.estimator = static_cast<int64_t>(estimator);
  return p;
}

void CheckValues(const Forward& p, const std::vector<double>& want, double tolerance) {
  Status status;
  const Tensor fast = testing::Outputs(p, &status)[0];
  CHECK(status.ok());
  const Tensor reference = testing::ReferenceOutputs(p)[0];
  for (size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(testing::Get(reference, i) - want[i]) <= tolerance);
    CHECK(std::abs(testing::Get(fast, i) - want[i]) <= tolerance + 1e-7);
  }
}

TEST_CASE("Group advantages give the numbers of the worked batch") {
  const auto e1 = [](Estimator estimator) {
    Forward p = Of(estimator, {1, 0, .5, 1, 0}, {0, 0, 1, 1, 1});
    p.lengths = testing::Host(std::vector<int32_t>{2, 3, 1, 3, 0});
    return p;
  };
  constexpr double kPrinted = 0.6e-6;
  CheckValues(e1(Estimator::kGrpo), {.707106, -.707106, -.707105, .707105, 0}, kPrinted);
  CheckValues(e1(Estimator::kNoStd), {.5, -.5, -.25, .25, 0}, 1e-12);
  CheckValues(e1(Estimator::kBatchStd), {1.044464, -1.044464, -.522232, .522232, 0}, kPrinted);
  CheckValues(e1(Estimator::kRloo), {1, -1, -.5, .5, 0}, 1e-12);
  CheckValues(e1(Estimator::kOpo), {.6, -.4, -.375, .125, 0}, 1e-12);
}

TEST_CASE("Group advantages give the literals of SkyRL") {
  const std::vector<double> rewards = {6, 3, 9, 12, 1};
  const std::vector<int32_t> groups = {0, 0, 7, 7, -3};
  CheckValues(Of(Estimator::kRloo, rewards, groups), {3, -3, -3, 3, 0}, 1e-12);
  CheckValues(Of(Estimator::kNoStd, rewards, groups), {1.5, -1.5, -1.5, 1.5, 0}, 1e-12);
  CheckValues(Of(Estimator::kMaxRl, rewards, groups),
              {1.5 / 4.5, -1.5 / 4.5, -1.5 / 10.5, 1.5 / 10.5, 0}, 1e-6);
  // Best minus second best over the deviation; the first of equals wins, and then gains nothing.
  CheckValues(Of(Estimator::kPassK, {1, 4, 2, 4, 4, 0}, {0, 0, 0, 1, 1, 1}),
              {0, 2 / std::sqrt(7. / 3), 0, 0, 0, 0}, 1e-6);
}

TEST_CASE("Answers without a score, groups of one and groups without spread get zero") {
  Forward p = Of(Estimator::kGrpo, {kNaN, 1, 3, 5, 0.1, 0.1 + 1e-9}, {0, 0, 0, 1, 2, 2});
  CheckValues(p, {0, -.7071063, .7071063, 0, 0, 0}, 1e-6);
  p.singleton = static_cast<int64_t>(Singleton::kRaw);
  CheckValues(p, {0, -.7071063, .7071063, 5, 0, 0}, 1e-6);
  p.singleton = static_cast<int64_t>(Singleton::kError);
  Status status;
  (void)testing::Outputs(p, &status);
  CHECK(status.code == Code::kSingletonGroup);
}

TEST_CASE("maxrl refuses a group whose mean is not above zero") {
  Status status;
  (void)testing::Outputs(Of(Estimator::kMaxRl, {-1, 0}, {0, 0}), &status);
  CHECK(status.code == Code::kRange);
}

TEST_CASE("Group advantages agree with the reference on random groups in any order") {
  for (int estimator = 0; estimator < 7; ++estimator) {
    for (uint32_t seed = 1; seed <= 6; ++seed) {
      const int64_t num_seqs = 1 + 37 * seed;
      Forward p;
      p.rewards = testing::Random(DType::kF32, {num_seqs}, seed);
      std::vector<int32_t> groups, lengths;
      for (int64_t i = 0; i < num_seqs; ++i) {
        // Far apart, negative too, and colliding in the low bits.
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
      CAPTURE(estimator);
      CAPTURE(seed);
      CHECK(testing::Difference(testing::Outputs(p)[0], testing::ReferenceOutputs(p)[0], 2e-7) ==
            "");
    }
  }
}

}  // namespace
}  // namespace varlen::group_advantage
