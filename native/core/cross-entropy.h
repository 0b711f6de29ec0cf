#pragma once

#include <cstdint>
#include <vector>

#include "core/linear-logits.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Weighted cross entropy over packed tokens: what the op on logits and the op on hidden states
// share. With p, lse and z of linear-logits.h, y the target, eps the label smoothing:
//
//   ell[t]  = (1 - eps) (lse - z[y]) + eps (lse - mean_v z[v]) + z_loss * lse^2
//   loss    = scale * sum_t w[t] ell[t] / (normalize ? sum_t w[t] : 1)     over t with mask 1, w >
//   0
//
// so that label smoothing mixes the target with the uniform distribution (Szegedy et al. 2016) and
// the z-loss keeps lse near 0 (PaLM, section 5). Also log-probabilities of the targets and
// entropies, all differentiable.
namespace varlen {

// The arguments that say which tokens count, in the words of both ops.
struct CrossEntropyTokens {
  HostOrTensor<int32_t> target_ids;  // [totalTokens]; read where a token counts
  Tensor loss_mask;                  // [totalTokens] uint8, absent: all 1
  Tensor weights;                    // [totalTokens] float32 >= 0, absent: all 1

  template <class Visitor>
  void Visit(Visitor& v) {
    v.HostOrTensor("targetIds", target_ids, {"totalTokens"}, Need::kRequired);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, Layout::kContiguous, Need::kOptional);
    v.In("weights", weights, kFloat32, {"totalTokens"}, Layout::kContiguous, Need::kOptional);
  }
};

struct CrossEntropyOptions {
  float temperature = 1;
  float softcap = 0;
  float logit_scale = 1;
  float label_smoothing = 0;
  float z_loss = 0;
  double scale = 1;
  bool normalize = true;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Scalar("temperature", temperature);
    v.Scalar("softcap", softcap);
    v.Scalar("logitScale", logit_scale);
    v.Scalar("labelSmoothing", label_smoothing);
    v.Scalar("zLoss", z_loss);
    v.Scalar("scale", scale);
    v.Flag("normalize", normalize);
  }
  LogitShape shape() const { return {temperature, softcap, logit_scale}; }
  Status Validate(const CrossEntropyTokens& tokens, int64_t total_tokens) const;
};

// What the forward pass leaves, [totalTokens] each; 0 where a token does not count.
struct CrossEntropyOutputs {
  Tensor loss;       // [] float32
  Tensor per_token;  // float32, ell
  Tensor logprobs;   // float32, of the targets
  Tensor entropies;  // float32
  Tensor lse;        // float64

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Out("loss", loss, kFloat32, {});
    v.Out("perToken", per_token, kFloat32, {"totalTokens"});
    v.Out("logprobs", logprobs, kFloat32, {"totalTokens"});
    v.Out("entropies", entropies, kFloat32, {"totalTokens"});
    v.Out("lse", lse, kFloat64, {"totalTokens"});
  }
};

// Gradients that come back, and what the forward pass saved.
struct CrossEntropyUpstream {
  Tensor d_loss;                                // [] float32; absent: 0
  Tensor d_per_token, d_logprobs, d_entropies;  // [totalTokens] float32; absent: 0
  Tensor lse, entropies;                        // of the forward pass

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.In("dLoss", d_loss, kFloat32, {}, kDense, Need::kOptional);
    v.In("dPerToken", d_per_token, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("dLogprobs", d_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("dEntropies", d_entropies, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("lse", lse, kFloat64, {"totalTokens"});
    v.In("entropies", entropies, kFloat32, {"totalTokens"});
  }
};

// The tokens that count, in order.
struct CountedTokens {
  std::vector<int32_t> rows;
  std::vector<int32_t> targets;
  std::vector<float> weights;
  double weight_sum = 0;

  int64_t size() const { return static_cast<int64_t>(rows.size()); }
};

// Refuses targets outside the vocabulary and weights that are negative or NaN.
Status CountTokens(const CrossEntropyTokens& tokens, int64_t total_tokens, int64_t vocab_size,
                   CountedTokens* counted);

// Statistics of the counted rows, as the core computes them.
struct CrossEntropyRows {
  std::vector<double> lse;
  std::vector<float> target_logit, entropy, mean_logit;

  explicit CrossEntropyRows(int64_t n)
      : lse(static_cast<size_t>(n)),
        target_logit(static_cast<size_t>(n)),
        entropy(static_cast<size_t>(n)),
        mean_logit(static_cast<size_t>(n)) {}
  RowStatistics out() {
    return {lse.data(), target_logit.data(), entropy.data(), nullptr, mean_logit.data()};
  }
};

void WriteCrossEntropy(const CrossEntropyOptions& options, const CountedTokens& counted,
                       const CrossEntropyRows& rows, int64_t total_tokens,
                       const CrossEntropyOutputs& out);

// Coefficients of the counted rows, for ComputeLinearGradients or ComputeLogitGradients.
class CrossEntropyGradients {
 public:
  CrossEntropyGradients(const CrossEntropyOptions& options, const CountedTokens& counted,
                        const CrossEntropyUpstream& upstream, int64_t vocab_size);
  LogitGradients gradients() const;

 private:
  const CountedTokens& counted_;
  std::vector<double> lse_;
  std::vector<DenseGradient> dense_;
  std::vector<float> target_;
};

}  // namespace varlen
