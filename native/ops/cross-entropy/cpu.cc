#include "core/dense-logits.h"
#include "ops/cross-entropy/cross-entropy.h"

// The CPU implementation. What differs per instruction set is in the core's rows.
namespace varlen::cross_entropy {
namespace {

DenseLogits LogitsOf(const Tensor& logits, const CrossEntropyOptions& options,
                     const CountedTokens& counted) {
  return {logits.dtype,   logits.address(), logits.strides[0], counted.rows.data(),
          counted.size(), logits.shape[1],  options.shape()};
}

}  // namespace

Status RunCpu(const Forward& params) {
  const int64_t tokens = params.logits.shape[0];
  CountedTokens counted;
  Status status = CountTokens(params.tokens, tokens, params.logits.shape[1], &counted);
  if (!status.ok()) return status;
  CrossEntropyRows rows(counted.size());
  status = ComputeRowStatistics(LogitsOf(params.logits, params.options, counted),
                                counted.targets.data(), rows.out());
  if (status.ok()) WriteCrossEntropy(params.options, counted, rows, tokens, params.out);
  return status;
}

Status RunCpu(const Backward& params) {
  const int64_t vocab_size = params.logits.shape[1];
  CountedTokens counted;
  Status status = CountTokens(params.tokens, params.logits.shape[0], vocab_size, &counted);
  if (!status.ok()) return status;
  status = ClearOtherRows(params.d_logits, counted.rows);
  if (!status.ok()) return status;
  const CrossEntropyGradients gradients(params.options, counted, params.upstream, vocab_size);
  return ComputeLogitGradients(LogitsOf(params.logits, params.options, counted),
                               gradients.gradients(), params.d_logits.address(),
                               params.d_logits.strides[0]);
}

}  // namespace varlen::cross_entropy
