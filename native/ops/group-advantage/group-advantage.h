#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"
#include "ops/group-advantage/estimator.h"

// Advantages of answers relative to the other answers of their prompt, in float64 inside.
//
//   grpo          (R - mu_g) / (sigma_g + eps)        Shao et al. 2024
//   grpo-nostd    R - mu_g                            Liu et al. 2025 (Dr. GRPO)
//   grpo-batchstd (R - mu_g) / (sigma_batch + eps)
//   rloo          (R - mu_g) n / (n - 1)              Ahmadian et al. 2024
//   maxrl         (R - mu_g) / (mu_g + eps)           needs mu_g > 0
//   opo           R - sum_g L R / sum_g L             Hao et al. 2025
//   passk         best: (R - second best) / (sigma_g + eps), the first of equals; others 0
//
// mu, sigma (divisor n - 1) and n are over the scored (not NaN) answers of a group with active
// tokens; all others get 0, as does a group without spread (max - min <= 1e-6 max(1, |max|)).
namespace varlen::group_advantage {

struct Forward {
  static constexpr const char* kName = "groupAdvantage";
  static constexpr bool kOnGpu = true;

  Tensor rewards;                   // [numSeqs] float32, NaN: not scored
  HostOrTensor<int32_t> group_ids;  // [numSeqs], any integers, in any order
  HostOrTensor<int32_t> lengths;    // [numSeqs], active tokens; absent: all answers are active
  int64_t estimator = 0;
  int64_t singleton = 0;  // what a group of one scored answer gets
  double eps = 1e-6;
  Tensor advantages;  // [numSeqs] float32, out

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("rewards", rewards, kFloat32, {"numSeqs"});
    v.HostOrTensor("groupIds", group_ids, {"numSeqs"}, Need::kRequired);
    v.HostOrTensor("lengths", lengths, {"numSeqs"}, Need::kOptional);
    v.Scalar("estimator", estimator);
    v.Scalar("singleton", singleton);
    v.Scalar("eps", eps);
    v.Out("advantages", advantages, kFloat32, {"numSeqs"});
  }
  Status Validate() const;
};

Status Run(const Forward& params);
Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);
// `advantages` is a float64 tensor.
Status RunReference(const Forward& params);

}  // namespace varlen::group_advantage
