#include <cmath>
#include <limits>
#include <vector>

#include "core/linear-head-reference.h"
#include "core/loss/loss.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

// The formulas of the header as plain loops in double. The backward pass computes the logits and
// their sums again; the loss itself is core/loss/reference.cc.
namespace varlen::policy_loss_from_hidden {
namespace {

struct Row {
  std::vector<double> z, slope, p;  // slope: dz / du
  double lse, entropy = 0, squares = 0;

  Row(const LinearHead& head, const Options& options, int64_t t) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double u : ReferenceLogits(head, t)) {
      const double tanh = options.softcap > 0 ? std::tanh(u / options.softcap) : 0;
      z.push_back((options.softcap > 0 ? options.softcap * tanh : u) / options.temperature);
      slope.push_back((1 - tanh * tanh) / options.temperature);
      max = std::max(max, z.back());
    }
    for (double x : z) sum += std::exp(x - max);
    lse = max + std::log(sum);
    for (double x : z) {
      p.push_back(std::exp(x - lse));
      if (p.back() > 0) entropy -= p.back() * (x - lse);
      squares += p.back() * p.back();
    }
  }
};

bool Counts(const Tensor& mask, int64_t row) { return !mask || mask.data<uint8_t>()[row] != 0; }

void Write(const std::vector<double>& from, const Tensor& to) {
  if (to) std::copy(from.begin(), from.end(), to.data<double>());
}

}  // namespace

Status RunReference(const Forward& params) {
  const int64_t total = params.head.total_tokens();
  const auto zeros = std::vector<double>(static_cast<size_t>(total));
  loss::ReferenceInputs in = params.batch.ToReference(total);
  in.logprobs = in.entropies = zeros;
  std::vector<double> lse = zeros, squares = zeros;
  for (int64_t t = 0; t < total; ++t) {
    if (!Counts(params.batch.loss_mask, t)) continue;
    const Row row(params.head, params.options, t);
    in.logprobs[t] = row.z[params.options.target_ids.data()[t]] - row.lse;
    in.entropies[t] = row.entropy;
    lse[t] = row.lse;
    squares[t] = row.squares;
  }
  const loss::ReferenceOutputs out = loss::EvaluateReference(params.config, in);
  Write({out.loss}, params.loss);
  Write(out.d_logprobs, params.d_logprobs);
  Write(out.sums, params.sums);
  Write(in.logprobs, params.logprobs);
  Write(in.entropies, params.entropies);
  Write(lse, params.lse);
  Write(out.d_entropies, params.d_entropies);
  Write(squares, params.sum_squares);
  Write(out.per_token_loss, params.per_token_loss);
  Write(out.sequence_losses, params.sequence_losses);
  return {};
}

Status RunReference(const Backward& params) {
  const ReferenceHeadGradients gradients(params.head, params.gradients);
  for (int64_t t = 0; t < params.head.total_tokens(); ++t) {
    if (!Counts(params.loss_mask, t)) continue;
    const Row row(params.head, params.options, t);
    const double d_loss = ReadOr(params.d_loss, 0, 0);
    const double c = d_loss * ReadOr(params.d_logprobs, t, 0) + ReadOr(params.d_logprobs_out, t, 0);
    const double e =
        d_loss * ReadOr(params.d_entropies, t, 0) + ReadOr(params.d_entropies_out, t, 0);
    std::vector<double> du;
    for (int64_t v = 0; v < params.head.vocab_size(); ++v) {
      const double p = row.p[v], hit = params.options.target_ids.data()[t] == v ? 1 : 0;
      double dz = c * (hit - p);
      if (p > 0) dz -= e * p * (row.z[v] - row.lse + row.entropy);
      du.push_back(dz * row.slope[v]);
    }
    gradients.Add(t, du);
  }
  return {};
}

}  // namespace varlen::policy_loss_from_hidden
