#include <algorithm>

#include "ops/policy-loss/policy-loss.h"

namespace varlen::policy_loss {
namespace {

void Write(const std::vector<double>& values, const Tensor& tensor) {
  if (tensor) std::copy(values.begin(), values.end(), tensor.data<double>());
}

}  // namespace

Status RunReference(const Forward& params) {
  loss::ReferenceInputs in = params.batch.ToReference(params.logprobs.shape[0]);
  in.logprobs = loss::ReadDoubles(params.logprobs);
  in.entropies = loss::ReadDoubles(params.entropies);
  const loss::ReferenceOutputs out = loss::EvaluateReference(params.config, in);
  Write({out.loss}, params.loss);
  Write(out.d_logprobs, params.d_logprobs);
  Write(out.sums, params.sums);
  Write(out.per_token_loss, params.per_token_loss);
  Write(out.sequence_losses, params.sequence_losses);
  if (params.sequence_tokens) {
    for (int64_t i = 0; i < params.batch.num_seqs(); ++i) {
      int32_t tokens = 0;
      for (int32_t t = in.cu_seqlens[i]; t < in.cu_seqlens[i + 1]; ++t) {
        tokens += in.loss_mask.empty() || in.loss_mask[t] != 0;
      }
      params.sequence_tokens.data<int32_t>()[i] = tokens;
    }
  }
  return {};
}

Status RunReference(const Backward& params) {
  const std::vector<double> d_loss = loss::ReadDoubles(params.d_loss);
  std::vector<double> gradient = loss::ReadDoubles(params.d_logprobs);
  for (double& g : gradient) g *= d_loss[0];
  Write(gradient, params.gradient);
  return {};
}

}  // namespace varlen::policy_loss
