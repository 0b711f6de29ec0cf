#include <algorithm>
#include <cmath>

#include "core/loss/loss.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

// The CPU implementation: the core's tiles make log-probabilities, core/loss makes the loss of
// them, the tiles take its gradient back.
namespace varlen::policy_loss_from_hidden {
namespace {

// to[rows[i]] = from[i], 0 elsewhere.
template <class T>
void Scatter(const std::vector<int32_t>& rows, const std::vector<T>& from, const Tensor& to) {
  std::fill_n(to.data<T>(), to.shape[0], T(0));
  for (size_t i = 0; i < rows.size(); ++i) to.data<T>()[rows[i]] = from[i];
}

}  // namespace

Status RunCpu(const Forward& params) {
  const LinearHead& head = params.head;
  std::vector<int32_t> rows, targets;
  Status status = ActiveRows(params.options, params.batch.loss_mask, head.total_tokens(),
                             params.shard.TotalWords(head.vocab_size()), &rows, &targets);
  if (!status.ok()) return status;

  const size_t n = rows.size();
  std::vector<double> lse(n);
  std::vector<float> target(n), entropy(n), squares(params.want_sum_squares ? n : 0);
  const RowStatistics statistics{lse.data(), target.data(), entropy.data(),
                                 params.want_sum_squares ? squares.data() : nullptr, nullptr};
  if (params.statistics) {
    ReadStatistics(params.statistics, rows, statistics);
  } else {
    status =
        ComputeRowStatistics(head.Logits(params.options.shape(), rows), targets.data(), statistics);
  }
  if (!status.ok()) return status;
  // The target's logit is one of those that lse sums: no rounding makes a probability above 1.
  for (size_t i = 0; i < n; ++i) target[i] = static_cast<float>(target[i] - lse[i]);
  Scatter(rows, target, params.logprobs);
  Scatter(rows, entropy, params.entropies);
  Scatter(rows, lse, params.lse);
  if (params.want_sum_squares) Scatter(rows, squares, params.sum_squares);

  loss::Inputs in = params.batch.ToInputs(head.total_tokens());
  in.logprobs = params.logprobs.address();
  in.entropies = params.entropies.data<float>();
  return loss::Evaluate(params.config, in, loss::OutputsOf(params));
}

Status RunCpu(const Backward& params) {
  const LinearHead& head = params.head;
  std::vector<int32_t> rows, targets;
  Status status = ActiveRows(params.options, params.loss_mask, head.total_tokens(),
                             params.shard.TotalWords(head.vocab_size()), &rows, &targets);
  if (!status.ok()) return status;
  targets = params.shard.Own(targets);

  const auto at = [](const Tensor& tensor, int64_t row) -> double {
    return tensor ? tensor.data<float>()[row] : 0.0f;
  };
  const double d_loss = params.d_loss ? *params.d_loss.data<float>() : 0.0f;
  std::vector<double> lse;
  std::vector<DenseGradient> dense;
  std::vector<float> sparse;
  for (int32_t row : rows) {
    const double c = d_loss * at(params.d_logprobs, row) + at(params.d_logprobs_out, row);
    const double e = d_loss * at(params.d_entropies, row) + at(params.d_entropies_out, row);
    const double entropy = e == 0 ? 0 : at(params.entropies, row);
    lse.push_back(params.lse.data<double>()[row]);
    dense.push_back({static_cast<float>(-c - e * entropy), static_cast<float>(-e), 0.0f});
    sparse.push_back(static_cast<float>(c));
  }
  double largest = 0;
  for (float c : sparse) largest = std::max(largest, std::abs(double{c}));
  LinearGradients out;
  status = params.gradients.Prepare(rows, &out);
  out.skip_below = static_cast<float>(params.tile_filter * largest);
  if (!status.ok()) return status;
  return ComputeLinearGradients(head.Logits(params.options.shape(), rows),
                                {lse.data(), dense.data(), 1, targets.data(), sparse.data()}, out);
}

}  // namespace varlen::policy_loss_from_hidden
