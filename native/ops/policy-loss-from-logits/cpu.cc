#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dense-logits.h"
#include "core/dispatch.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

// The CPU implementation: rows of logits by core/dense-logits.cc, the loss by
// core/loss/evaluate.cc; both are compiled per instruction set.
namespace varlen::policy_loss_from_logits {
namespace {

template <class T>
T* DataOf(const Tensor& tensor) {
  return tensor ? tensor.data<T>() : nullptr;
}

DenseLogits LogitsOf(const Tensor& logits, const std::vector<int32_t>& rows, double temperature) {
  DenseLogits dense;
  dense.dtype = logits.dtype;
  dense.logits = logits.address();
  dense.stride = logits.strides[0];
  dense.rows = rows.data();
  dense.num_rows = static_cast<int64_t>(rows.size());
  dense.vocab_size = logits.shape[1];
  dense.shape.temperature = static_cast<float>(temperature);
  return dense;
}

template <class T, class Value>
void Scatter(const std::vector<int32_t>& rows, const std::vector<Value>& values,
             const Tensor& tensor) {
  if (!tensor) return;
  T* to = tensor.data<T>();
  std::fill_n(to, tensor.size(), T(0));
  for (size_t i = 0; i < rows.size(); ++i) to[rows[i]] = static_cast<T>(values[i]);
}

}  // namespace

Status RunCpu(const Forward& p) {
  const int64_t num_tokens = p.logits.shape[0];
  const uint8_t* mask = DataOf<uint8_t>(p.batch.loss_mask);
  std::vector<int32_t> rows, targets;
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (mask != nullptr && mask[t] == 0) continue;
    rows.push_back(static_cast<int32_t>(t));
    targets.push_back(p.target_ids.data()[t]);
  }
  std::vector<double> lse(rows.size());
  std::vector<float> target_logits(rows.size());
  std::vector<float> entropies(p.uses_entropies() ? rows.size() : 0);
  std::vector<float> squares(p.want_squares ? rows.size() : 0);
  RowStatistics statistics{};
  statistics.lse = lse.data();
  statistics.target_logit = target_logits.data();
  statistics.entropy = p.uses_entropies() ? entropies.data() : nullptr;
  statistics.sum_squares = p.want_squares ? squares.data() : nullptr;
  Status status =
      ComputeRowStatistics(LogitsOf(p.logits, rows, p.temperature), targets.data(), statistics);
  if (!status.ok()) return status;

  // A difference of doubles: near 0 the log-probability keeps its digits.
  std::vector<double> logprobs(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) logprobs[i] = target_logits[i] - lse[i];
  Scatter<float>(rows, logprobs, p.logprobs);
  Scatter<double>(rows, lse, p.lse);
  Scatter<float>(rows, entropies, p.entropies);
  Scatter<float>(rows, squares, p.sum_squares);

  loss::Inputs in = p.batch.ToInputs(num_tokens);
  in.logprobs = p.logprobs.address();
  in.entropies = DataOf<float>(p.entropies);
  return loss::Evaluate(p.config, in, loss::OutputsOf(p));
}

Status RunCpu(const Backward& p) {
  const float factor = p.d_loss.data<float>()[0];
  const float* d_logprobs = p.d_logprobs.data<float>();
  const float* d_entropies = DataOf<float>(p.d_entropies);
  std::vector<int32_t> rows, words;
  std::vector<double> lse;
  std::vector<DenseGradient> dense;
  std::vector<float> sparse;
  for (int64_t t = 0; t < p.d_logprobs.shape[0]; ++t) {
    const float by_entropy = d_entropies == nullptr ? 0 : d_entropies[t];
    // Masked and dropped rows; what they hold is not read.
    if (d_logprobs[t] == 0 && by_entropy == 0) continue;
    const float c = factor * d_logprobs[t], e = factor * by_entropy;
    const float entropy = by_entropy == 0 ? 0 : p.entropies.data<float>()[t];
    rows.push_back(static_cast<int32_t>(t));
    lse.push_back(p.lse.data<double>()[t]);
    dense.push_back({-c - e * entropy, -e, 0});
    words.push_back(p.target_ids.data()[t]);
    sparse.push_back(c);
  }
  const Tensor &source = p.source(), &target = p.target();
  if (Status status = ClearOtherRows(target, rows); !status.ok()) return status;
  const LogitGradients gradients{lse.data(), dense.data(), 1, words.data(), sparse.data()};
  return ComputeLogitGradients(LogitsOf(source, rows, p.temperature), gradients, target.address(),
                               target.strides[0]);
}

}  // namespace varlen::policy_loss_from_logits
