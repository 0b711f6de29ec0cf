#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

// The CPU implementation. What differs per instruction set is in the core's tiles.
namespace varlen::cross_entropy_from_hidden {

Status RunCpu(const Forward& params) {
  const LinearHead& head = params.head;
  CountedTokens counted;
  Status status = CountTokens(params.tokens, head.total_tokens(), head.vocab_size(), &counted);
  if (!status.ok()) return status;
  CrossEntropyRows rows(counted.size());
  status = ComputeRowStatistics(head.Logits(params.options.shape(), counted.rows),
                                counted.targets.data(), rows.out());
  if (status.ok()) {
    WriteCrossEntropy(params.options, counted, rows, head.total_tokens(), params.out);
  }
  return status;
}

Status RunCpu(const Backward& params) {
  const LinearHead& head = params.head;
  CountedTokens counted;
  Status status = CountTokens(params.tokens, head.total_tokens(), head.vocab_size(), &counted);
  if (!status.ok()) return status;
  LinearGradients out;
  status = params.gradients.Prepare(counted.rows, &out);
  if (!status.ok()) return status;
  const CrossEntropyGradients gradients(params.options, counted, params.upstream,
                                        head.vocab_size());
  return ComputeLinearGradients(head.Logits(params.options.shape(), counted.rows),
                                gradients.gradients(), out);
}

}  // namespace varlen::cross_entropy_from_hidden
