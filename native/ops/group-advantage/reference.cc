#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/group-advantage/group-advantage.h"

// Every answer looks through all the others: quadratic, and nothing to get wrong.
namespace varlen::group_advantage {
namespace {

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double SampleStd(const std::vector<double>& values) {
  const double mean = Mean(values);
  double squares = 0;
  for (double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (static_cast<double>(values.size()) - 1));
}

}  // namespace

Status RunReference(const Forward& p) {
  const int64_t num_seqs = p.rewards.shape[0];
  const float* rewards = p.rewards.data<float>();
  const auto counts = [&](int64_t i) {
    return !std::isnan(rewards[i]) && (!p.lengths || p.lengths.data()[i] > 0);
  };
  std::vector<double> all;
  for (int64_t i = 0; i < num_seqs; ++i) {
    if (counts(i)) all.push_back(rewards[i]);
  }
  for (int64_t i = 0; i < num_seqs; ++i) {
    double& advantage = p.advantages.data<double>()[i];
    advantage = 0;
    if (!counts(i)) continue;
    std::vector<double> group, others;
    double length = 0, length_reward = 0;
    bool first_best = true;
    for (int64_t j = 0; j < num_seqs; ++j) {
      if (!counts(j) || p.group_ids.data()[j] != p.group_ids.data()[i]) continue;
      group.push_back(rewards[j]);
      if (j != i) others.push_back(rewards[j]);
      if (rewards[j] > rewards[i] || (rewards[j] == rewards[i] && j < i)) first_best = false;
      if (p.lengths) {
        length += p.lengths.data()[j];
        length_reward += p.lengths.data()[j] * double{rewards[j]};
      }
    }
    const double reward = rewards[i], mean = Mean(group);
    if (group.size() == 1) {
      if (static_cast<Singleton>(p.singleton) == Singleton::kRaw) advantage = reward;
      continue;
    }
    const auto [min, max] = std::minmax_element(group.begin(), group.end());
    if (*max - *min <= 1e-6 * std::max(1.0, std::abs(*max))) continue;
    switch (static_cast<Estimator>(p.estimator)) {
      case Estimator::kGrpo:
        advantage = (reward - mean) / (SampleStd(group) + p.eps);
        break;
      case Estimator::kNoStd:
        advantage = reward - mean;
        break;
      case Estimator::kBatchStd:
        advantage = (reward - mean) / (SampleStd(all) + p.eps);
        break;
      case Estimator::kRloo:
        advantage = reward - Mean(others);
        break;
      case Estimator::kMaxRl:
        advantage = (reward - mean) / (mean + p.eps);
        break;
      case Estimator::kOpo:
        advantage = reward - length_reward / length;
        break;
      case Estimator::kPassK:
        if (first_best) {
          advantage = (reward - *std::max_element(others.begin(), others.end())) /
                      (SampleStd(group) + p.eps);
        }
        break;
    }
  }
  return {};
}

}  // namespace varlen::group_advantage
