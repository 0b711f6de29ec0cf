#include <cmath>
#include <limits>
#include <vector>

#include "core/loss/loss.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

// The formulas of the header as plain loops in double. The backward pass computes the logits and
// their sums again; the loss itself is core/loss/reference.cc.
namespace varlen::policy_loss_from_hidden {
namespace {

struct Matrix {
  std::vector<double> values;
  int64_t columns;
  explicit Matrix(const Tensor& tensor) : columns(tensor.rank == 2 ? tensor.shape[1] : 1) {
    Tensor row = tensor;
    row.rank = 1;
    row.shape[0] = columns;
    row.strides[0] = 1;
    for (int64_t i = 0; i < tensor.shape[0]; ++i) {
      row.offset = tensor.offset + i * tensor.strides[0];
      const std::vector<double> one = loss::ReadDoubles(row);
      values.insert(values.end(), one.begin(), one.end());
    }
  }
  double operator()(int64_t i, int64_t j) const { return values[i * columns + j]; }
};

struct Head {
  Matrix hidden, weight;
  std::vector<double> bias;
  explicit Head(const LinearHead& head) : hidden(head.hidden), weight(head.weight) {
    if (head.bias) bias = loss::ReadDoubles(head.bias);
  }
  int64_t words() const { return static_cast<int64_t>(weight.values.size()) / weight.columns; }
};

struct Row {
  std::vector<double> z, slope, p;  // slope: dz / du
  double lse, entropy = 0, squares = 0;

  Row(const Head& head, const Options& options, int64_t t) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t v = 0; v < head.words(); ++v) {
      double u = head.bias.empty() ? 0 : head.bias[v];
      for (int64_t k = 0; k < head.weight.columns; ++k) u += head.hidden(t, k) * head.weight(v, k);
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
  const Head head(params.head);
  const int64_t total = params.head.total_tokens();
  const auto zeros = std::vector<double>(static_cast<size_t>(total));
  loss::ReferenceInputs in = params.batch.ToReference(total);
  in.logprobs = in.entropies = zeros;
  std::vector<double> lse = zeros, squares = zeros;
  for (int64_t t = 0; t < total; ++t) {
    if (!Counts(params.batch.loss_mask, t)) continue;
    const Row row(head, params.options, t);
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
  const Head head(params.head);
  const int64_t size = params.head.hidden_size();
  const auto at = [](const Tensor& tensor, int64_t i) {
    if (!tensor) return 0.0;
    return tensor.dtype == DType::kF64 ? tensor.data<double>()[i] : tensor.data<float>()[i];
  };
  const LinearHeadGradients& out = params.gradients;
  for (const Tensor* tensor : {&out.d_hidden, &out.d_weight, &out.d_bias}) {
    if (*tensor) std::fill_n(tensor->data<double>(), tensor->size(), 0.0);
  }
  for (int64_t t = 0; t < params.head.total_tokens(); ++t) {
    if (!Counts(params.loss_mask, t)) continue;
    const Row row(head, params.options, t);
    const double d_loss = at(params.d_loss, 0);
    const double c = d_loss * at(params.d_logprobs, t) + at(params.d_logprobs_out, t);
    const double e = d_loss * at(params.d_entropies, t) + at(params.d_entropies_out, t);
    for (int64_t v = 0; v < head.words(); ++v) {
      const double p = row.p[v], hit = params.options.target_ids.data()[t] == v ? 1 : 0;
      double dz = c * (hit - p);
      if (p > 0) dz -= e * p * (row.z[v] - row.lse + row.entropy);
      const double du = dz * row.slope[v];
      if (out.d_bias) out.d_bias.data<double>()[v] += du;
      for (int64_t k = 0; k < size; ++k) {
        if (out.d_hidden) out.d_hidden.data<double>()[t * size + k] += du * head.weight(v, k);
        if (out.d_weight) out.d_weight.data<double>()[v * size + k] += du * head.hidden(t, k);
      }
    }
  }
  return {};
}

}  // namespace varlen::policy_loss_from_hidden
