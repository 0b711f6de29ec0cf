#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/host_device.h"

// The estimators of group-advantage.h, from a group's statistics: once for the CPU and for a GPU
// thread.
namespace varlen::group_advantage {

enum class Estimator : uint8_t { kGrpo, kNoStd, kBatchStd, kRloo, kMaxRl, kOpo, kPassK };
enum class Singleton : uint8_t { kZero, kRaw, kError };

// Of the scored answers of one group.
struct GroupStatistics {
  int64_t n = 0;
  double mean = 0, squares = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  double length = 0, length_reward = 0;                      // OPO
  double second = -std::numeric_limits<double>::infinity();  // pass@k
  int64_t best = -1;

  VARLEN_HOST_DEVICE double Std() const {
    return n < 2 ? 0 : std::sqrt(squares / static_cast<double>(n - 1));
  }
  VARLEN_HOST_DEVICE bool NoSpread() const {
    return max - min <= 1e-6 * std::max(1.0, std::abs(max));
  }
};

// What an estimator refuses in a group.
enum class Refusal : uint8_t { kNone, kSingleton, kMean };

VARLEN_HOST_DEVICE inline Refusal RefusalOf(Estimator estimator, Singleton singleton,
                                            const GroupStatistics& group) {
  if (group.n == 1 && singleton == Singleton::kError) return Refusal::kSingleton;
  const bool needs_mean = estimator == Estimator::kMaxRl && group.n > 1 && !group.NoSpread();
  return needs_mean && !(group.mean > 0) ? Refusal::kMean : Refusal::kNone;
}

// Of answer i, which is scored.
VARLEN_HOST_DEVICE inline double AdvantageOf(Estimator estimator, Singleton singleton, double eps,
                                             const GroupStatistics& group, double reward, int64_t i,
                                             double batch_std) {
  if (group.n == 1) return singleton == Singleton::kRaw ? reward : 0;
  if (group.NoSpread()) return 0;
  const auto n = static_cast<double>(group.n);
  switch (estimator) {
    case Estimator::kGrpo:
      return (reward - group.mean) / (group.Std() + eps);
    case Estimator::kNoStd:
      return reward - group.mean;
    case Estimator::kBatchStd:
      return (reward - group.mean) / (batch_std + eps);
    case Estimator::kRloo:
      return (reward - group.mean) * n / (n - 1);
    case Estimator::kMaxRl:
      return (reward - group.mean) / (group.mean + eps);
    case Estimator::kOpo:
      return reward - group.length_reward / group.length;
    case Estimator::kPassK:
      return i == group.best ? (reward - group.second) / (group.Std() + eps) : 0;
  }
  return 0;
}

}  // namespace varlen::group_advantage
