#pragma once

#include "core/device-reduce.h"
#include "ops/group-advantage/estimator.h"

// Group advantages on a GPU. A warp takes an answer and looks through all the others, lane = answer
// mod 32, lanes added by a fixed tree: no sorting, no hash table, no atomics, and every member of a
// group sees the same statistics to the last bit. Quadratic in the answers of a batch, which number
// thousands.
namespace varlen::group_advantage {

struct GroupAdvantage {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 0;

  // Every pointer is device memory.
  struct Params {
    const float* rewards;      // [num_seqs], NaN: not scored
    const int32_t* group_ids;  // [num_seqs]
    const int32_t* lengths;    // [num_seqs] or null
    int64_t num_seqs;
    Estimator estimator;
    Singleton singleton;
    double eps;
    float* advantages;  // [num_seqs]
    uint8_t* refusals;  // [num_seqs]: the Refusal of a group at its first answer, else 0
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t i = simt::BlockIndex() * kWarps + simt::WarpIndex(); i < p.num_seqs;
         i += simt::GridSize() * kWarps) {
      Advantage(p, i);
    }
  }

 private:
  static SIMT_FN bool Counts(const Params& p, int64_t j, float reward) {
    return reward == reward && (p.lengths == nullptr || simt::Load(p.lengths + j) > 0);
  }

  // Calls visit(j, reward, in_group) for this lane's scored answers.
  template <class Visit>
  static SIMT_FN void ForEach(const Params& p, int32_t id, const Visit& visit) {
    for (int64_t j = simt::LaneIndex(); j < p.num_seqs; j += simt::kWarpSize) {
      const float reward = simt::Load(p.rewards + j);
      if (Counts(p, j, reward)) visit(j, double{reward}, simt::Load(p.group_ids + j) == id);
    }
  }

  static SIMT_FN void Advantage(const Params& p, int64_t i) {
    const int32_t id = simt::Load(p.group_ids + i);
    GroupStatistics group;
    double n = 0, total = 0, scored = 0;
    auto best = static_cast<double>(p.num_seqs);
    ForEach(p, id, [&](int64_t j, double reward, bool in_group) {
      total += reward;
      ++scored;
      if (!in_group) return;
      ++n;
      group.mean += reward;
      if (reward < group.min) group.min = reward;
      if (reward > group.max) {
        group.second = group.max;
        group.max = reward;
        best = static_cast<double>(j);
      } else if (reward > group.second) {
        group.second = reward;
      }
      if (p.lengths != nullptr) {
        const double length = simt::Load(p.lengths + j);
        group.length += length;
        group.length_reward += length * reward;
      }
    });
    n = FoldLanes(Fold::kSum, n);
    total = FoldLanes(Fold::kSum, total);
    scored = FoldLanes(Fold::kSum, scored);
    group.n = static_cast<int64_t>(n);
    group.mean = FoldLanes(Fold::kSum, group.mean) / (n > 1 ? n : 1);
    group.min = FoldLanes(Fold::kMin, group.min);
    group.length = FoldLanes(Fold::kSum, group.length);
    group.length_reward = FoldLanes(Fold::kSum, group.length_reward);
    const double max = FoldLanes(Fold::kMax, group.max);
    // The first of the equals, and the best of what it leaves.
    const double first = FoldLanes(Fold::kMin, group.max == max ? best : simt::Infinity());
    group.second = FoldLanes(Fold::kMax, best == first ? group.second : group.max);
    group.max = max;
    group.best = n > 0 ? static_cast<int64_t>(first) : -1;

    const double batch_mean = total / scored;
    double batch_squares = 0;
    ForEach(p, id, [&](int64_t, double reward, bool in_group) {
      batch_squares += (reward - batch_mean) * (reward - batch_mean);
      if (in_group) group.squares += (reward - group.mean) * (reward - group.mean);
    });
    group.squares = FoldLanes(Fold::kSum, group.squares);
    batch_squares = FoldLanes(Fold::kSum, batch_squares);
    const double batch_std = scored < 2 ? 0 : std::sqrt(batch_squares / (scored - 1));

    bool earlier = false;
    for (int64_t j = simt::LaneIndex(); j < i; j += simt::kWarpSize) {
      earlier = earlier || simt::Load(p.group_ids + j) == id;
    }
    const bool is_first = simt::Ballot(earlier) == 0;
    if (simt::LaneIndex() != 0) return;
    const float reward = simt::Load(p.rewards + i);
    double advantage = 0;
    if (Counts(p, i, reward)) {
      advantage = AdvantageOf(p.estimator, p.singleton, p.eps, group, reward, i, batch_std);
    }
    simt::Store(p.advantages + i, static_cast<float>(advantage));
    const Refusal refusal = is_first ? RefusalOf(p.estimator, p.singleton, group) : Refusal::kNone;
    simt::Store(p.refusals + i, static_cast<uint8_t>(refusal));
  }
};

}  // namespace varlen::group_advantage
