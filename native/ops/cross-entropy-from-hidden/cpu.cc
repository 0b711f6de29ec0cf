#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

// The CPU implementation. What differs per instruction set is in the core's tiles.
namespace varlen::cross_entropy_from_hidden {
namespace {

LinearLogits LogitsOf(const Head& head, const CrossEntropyOptions& options,
                      const CountedTokens& counted) {
  return {head.hidden.dtype,    head.hidden.address(), head.hidden.strides[0], counted.rows.data(),
          counted.size(),       head.weight.address(), head.weight.strides[0], head.bias.address(),
          head.weight.shape[0], head.weight.shape[1],  options.shape()};
}

}  // namespace

Status RunCpu(const Forward& params) {
  const int64_t tokens = params.head.hidden.shape[0];
  CountedTokens counted;
  Status status = CountTokens(params.tokens, tokens, params.head.weight.shape[0], &counted);
  if (!status.ok()) return status;
  CrossEntropyRows rows(counted.size());
  status = ComputeRowStatistics(LogitsOf(params.head, params.options, counted),
                                counted.targets.data(), rows.out());
  if (status.ok()) WriteCrossEntropy(params.options, counted, rows, tokens, params.out);
  return status;
}

Status RunCpu(const Backward& params) {
  const int64_t vocab_size = params.head.weight.shape[0];
  CountedTokens counted;
  Status status = CountTokens(params.tokens, params.head.hidden.shape[0], vocab_size, &counted);
  if (!status.ok()) return status;
  const CrossEntropyGradients gradients(params.options, counted, params.upstream, vocab_size);
  LinearGradients out{};
  if (params.want_hidden) {
    status = ClearOtherRows(params.d_hidden, counted.rows);
    if (!status.ok()) return status;
    out.d_hidden = params.d_hidden.address();
    out.d_hidden_stride = params.d_hidden.strides[0];
  }
  if (params.want_weight) out.d_weight = params.d_weight.data<float>();
  if (params.want_bias) out.d_bias = params.d_bias.data<float>();
  return ComputeLinearGradients(LogitsOf(params.head, params.options, counted),
                                gradients.gradients(), out);
}

}  // namespace varlen::cross_entropy_from_hidden
