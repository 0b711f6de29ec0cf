#include <cmath>
#include <limits>
#include <vector>

#include "ops/cross-entropy/cross-entropy.h"

// The formulas as plain loops in double. The backward pass computes the statistics again instead of
// reading those that the forward pass saved.
namespace varlen::cross_entropy {
namespace {

double At(const Tensor& tensor, int64_t index) {
  switch (tensor.dtype) {
    case DType::kF64:
      return tensor.data<double>()[index];
    case DType::kF32:
      return tensor.data<float>()[index];
    case DType::kF16:
      return static_cast<float>(tensor.data<half>()[index]);
    case DType::kBF16:
      return static_cast<float>(tensor.data<bfloat16>()[index]);
    case DType::kU8:
      return tensor.data<uint8_t>()[index];
    default:
      return std::numeric_limits<double>::quiet_NaN();  // Validate() refuses every other dtype
  }
}
double Or(const Tensor& tensor, int64_t index, double absent) {
  return tensor ? At(tensor, index) : absent;
}

double WeightOf(const CrossEntropyTokens& tokens, int64_t row) {
  if (Or(tokens.loss_mask, row, 1) == 0) return 0;
  return Or(tokens.weights, row, 1);
}

// One row: logits before and after the activation, and what follows from them.
struct Row {
  std::vector<double> z, slope;  // slope: dz / du
  double lse = 0, entropy = 0, mean = 0;

  Row(const std::vector<double>& raw, const CrossEntropyOptions& options) {
    double max = -std::numeric_limits<double>::infinity();
    for (double u : raw) {
      const double x = options.logit_scale * u;
      const double tanh = options.softcap > 0 ? std::tanh(x / options.softcap) : 0;
      z.push_back((options.softcap > 0 ? options.softcap * tanh : x) / options.temperature);
      slope.push_back(options.logit_scale * (1 - tanh * tanh) / options.temperature);
      max = std::max(max, z.back());
      mean += z.back() / static_cast<double>(raw.size());
    }
    double sum = 0;
    for (double x : z) sum += std::exp(x - max);
    lse = max + std::log(sum);
    for (double x : z) {
      const double p = std::exp(x - lse);
      if (p > 0) entropy -= p * (x - lse);
    }
  }

  double Loss(int32_t target, const CrossEntropyOptions& o) const {
    const double eps = o.label_smoothing;
    return (1 - eps) * (lse - z[target]) + (eps == 0 ? 0 : eps * (lse - mean)) +
           o.z_loss * lse * lse;
  }
  // dz from gradients of the token's loss, log-probability and entropy.
  std::vector<double> Gradient(int32_t target, const CrossEntropyOptions& o, double d_loss,
                               double d_logprob, double d_entropy) const {
    std::vector<double> du;
    const double eps = o.label_smoothing, words = static_cast<double>(z.size());
    for (size_t v = 0; v < z.size(); ++v) {
      const double p = std::exp(z[v] - lse), hit = static_cast<int64_t>(v) == target ? 1 : 0;
      double dz = d_loss * (p - (1 - eps) * hit - eps / words + 2 * o.z_loss * lse * p);
      dz += d_logprob * (hit - p);
      if (p > 0) dz -= d_entropy * p * (z[v] - lse + entropy);
      du.push_back(dz * slope[v]);
    }
    return du;
  }
};

template <class Params>
std::vector<double> RawLogits(const Params& p, int64_t t) {
  std::vector<double> raw;
  for (int64_t v = 0; v < p.logits.shape[1]; ++v) {
    raw.push_back(At(p.logits, t * p.logits.strides[0] + v));
  }
  return raw;
}

double WeightSum(const CrossEntropyTokens& tokens, int64_t total) {
  double sum = 0;
  for (int64_t t = 0; t < total; ++t) sum += WeightOf(tokens, t);
  return sum;
}
double FactorOf(const CrossEntropyOptions& options, double weight_sum) {
  if (!options.normalize) return options.scale;
  return weight_sum > 0 ? options.scale / weight_sum : 0;
}

void Clear(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.data<double>()[i] = 0;
}

}  // namespace

Status RunReference(const Forward& p) {
  const int64_t total = p.logits.shape[0];
  for (const Tensor* out : {&p.out.per_token, &p.out.logprobs, &p.out.entropies, &p.out.lse}) {
    Clear(*out);
  }
  double sum = 0;
  for (int64_t t = 0; t < total; ++t) {
    const double weight = WeightOf(p.tokens, t);
    if (weight == 0) continue;
    const int32_t target = p.tokens.target_ids.data()[t];
    const Row row(RawLogits(p, t), p.options);
    p.out.per_token.data<double>()[t] = row.Loss(target, p.options);
    p.out.logprobs.data<double>()[t] = row.z[target] - row.lse;
    p.out.entropies.data<double>()[t] = row.entropy;
    p.out.lse.data<double>()[t] = row.lse;
    sum += weight * row.Loss(target, p.options);
  }
  *p.out.loss.data<double>() = FactorOf(p.options, WeightSum(p.tokens, total)) * sum;
  return {};
}

Status RunReference(const Backward& p) {
  const int64_t total = p.logits.shape[0];
  const double factor =
      Or(p.upstream.d_loss, 0, 0) * FactorOf(p.options, WeightSum(p.tokens, total));
  Clear(p.d_logits);
  for (int64_t t = 0; t < total; ++t) {
    const double weight = WeightOf(p.tokens, t);
    if (weight == 0) continue;
    const Row row(RawLogits(p, t), p.options);
    const std::vector<double> du =
        row.Gradient(p.tokens.target_ids.data()[t], p.options,
                     factor * weight + Or(p.upstream.d_per_token, t, 0),
                     Or(p.upstream.d_logprobs, t, 0), Or(p.upstream.d_entropies, t, 0));
    for (size_t v = 0; v < du.size(); ++v) {
      p.d_logits.data<double>()[t * p.d_logits.strides[0] + static_cast<int64_t>(v)] = du[v];
    }
  }
  return {};
}

}  // namespace varlen::cross_entropy
