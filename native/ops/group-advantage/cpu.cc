#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "ops/group-advantage/group-advantage.h"

// A few passes over the answers with one slot per group: no sorting. Answers number thousands where
// tokens number millions, so one thread does it.
namespace varlen::group_advantage {
namespace {

struct Group : GroupStatistics {
  int32_t id;
};

// Group ids in order of appearance, by an open hash table of twice as many places.
class GroupTable {
 public:
  explicit GroupTable(int64_t num_seqs)
      : places_(std::bit_ceil(static_cast<uint64_t>(2 * num_seqs + 1)), -1) {}

  int32_t Find(int32_t id, std::vector<Group>& groups) {
    const uint64_t last = places_.size() - 1;
    // Multiplicative hashing (Knuth): ids are often consecutive.
    uint64_t place = (static_cast<uint32_t>(id) * uint64_t{0x9e3779b97f4a7c15u}) >> 32 & last;
    while (places_[place] >= 0 && groups[places_[place]].id != id) place = (place + 1) & last;
    if (places_[place] < 0) {
      places_[place] = static_cast<int32_t>(groups.size());
      groups.emplace_back().id = id;
    }
    return places_[place];
  }

 private:
  std::vector<int32_t> places_;
};

Status Refuse(const Group& group, Code code, const std::string& problem, double got,
              const std::string& expected) {
  Status status = Invalid(code, "rewards", problem, std::to_string(got), expected);
  status.details = {{"groupId", static_cast<double>(group.id)}};
  return status;
}

}  // namespace

Status RunCpu(const Forward& p) {
  const int64_t num_seqs = p.rewards.shape[0];
  const float* rewards = p.rewards.data<float>();
  const int32_t* lengths = p.lengths ? p.lengths.data() : nullptr;
  float* advantages = p.advantages.data<float>();
  const auto counts = [&](int64_t i) {
    return !std::isnan(rewards[i]) && (lengths == nullptr || lengths[i] > 0);
  };
  std::vector<Group> groups;
  std::vector<int32_t> group_of(static_cast<size_t>(num_seqs));
  GroupTable table(num_seqs);
  double total = 0, scored = 0;
  for (int64_t i = 0; i < num_seqs; ++i) {
    group_of[i] = table.Find(p.group_ids.data()[i], groups);
    if (!counts(i)) continue;
    Group& group = groups[group_of[i]];
    const double reward = rewards[i];
    ++group.n;
    group.mean += reward;
    group.min = std::min(group.min, reward);
    if (reward > group.max) {
      group.second = group.max;
      group.max = reward;
      group.best = i;
    } else {
      group.second = std::max(group.second, reward);
    }
    if (lengths != nullptr) {
      group.length += lengths[i];
      group.length_reward += lengths[i] * reward;
    }
    total += reward;
    ++scored;
  }
  for (Group& group : groups) group.mean /= static_cast<double>(std::max<int64_t>(group.n, 1));
  double batch_squares = 0;
  for (int64_t i = 0; i < num_seqs; ++i) {
    if (!counts(i)) continue;
    Group& group = groups[group_of[i]];
    const double distance = rewards[i] - group.mean, batch_distance = rewards[i] - total / scored;
    group.squares += distance * distance;
    batch_squares += batch_distance * batch_distance;
  }
  const double batch_std = scored < 2 ? 0 : std::sqrt(batch_squares / (scored - 1));

  const auto estimator = static_cast<Estimator>(p.estimator);
  const auto singleton = static_cast<Singleton>(p.singleton);
  for (const Group& group : groups) {
    switch (RefusalOf(estimator, singleton, group)) {
      case Refusal::kNone:
        break;
      case Refusal::kSingleton:
        return Refuse(group, Code::kSingletonGroup, "has a group of one scored answer", 1,
                      "at least 2 answers per group");
      case Refusal::kMean:
        return Refuse(group, Code::kRange, "has a group mean out of range", group.mean,
                      "a mean above 0 under estimator 'maxrl'");
    }
  }
  for (int64_t i = 0; i < num_seqs; ++i) {
    double advantage = 0;
    if (counts(i)) {
      advantage =
          AdvantageOf(estimator, singleton, p.eps, groups[group_of[i]], rewards[i], i, batch_std);
    }
    advantages[i] = static_cast<float>(advantage);
  }
  return {};
}

}  // namespace varlen::group_advantage
