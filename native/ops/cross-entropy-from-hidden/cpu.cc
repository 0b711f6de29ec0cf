#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

// The CPU implementation. What differs per instruction set is in the core's tiles.
namespace varlen::cross_entropy_from_hidden {

Status RunCpu(const Statistics& params) {
  const LinearHead& head = params.head;
  CountedTokens counted;
  Status status = CountTokens(params.tokens, head.total_tokens(),
                              params.shard.TotalWords(head.vocab_size()), &counted);
  if (!status.ok()) return status;
  CrossEntropyRows rows(counted.size());
  std::vector<float> squares(counted.rows.size());
  RowStatistics out = rows.out();
  out.sum_squares = squares.data();
  status = ComputeRowStatistics(head.Logits(params.shape(), counted.rows),
                                params.shard.Own(counted.targets).data(), out);
  if (status.ok()) WriteStatistics(out, counted.rows, params.statistics);
  return status;
}

Status RunCpu(const Forward& params) {
  const LinearHead& head = params.head;
  CountedTokens counted;
  Status status = CountTokens(params.tokens, head.total_tokens(),
                              params.shard.TotalWords(head.vocab_size()), &counted);
  if (!status.ok()) return status;
  CrossEntropyRows rows(counted.size());
  if (params.statistics) {
    ReadStatistics(params.statistics, counted.rows, rows.out());
  } else {
    status = ComputeRowStatistics(head.Logits(params.options.shape(), counted.rows),
                                  counted.targets.data(), rows.out());
  }
  if (status.ok()) {
    WriteCrossEntropy(params.options, counted, rows, head.total_tokens(), params.out);
  }
  return status;
}

Status RunCpu(const Backward& params) {
  const LinearHead& head = params.head;
  CountedTokens counted;
  const int64_t total_words = params.shard.TotalWords(head.vocab_size());
  Status status = CountTokens(params.tokens, head.total_tokens(), total_words, &counted);
  if (!status.ok()) return status;
  counted.targets = params.shard.Own(counted.targets);
  LinearGradients out;
  status = params.gradients.Prepare(counted.rows, &out);
  if (!status.ok()) return status;
  const CrossEntropyGradients gradients(params.options, counted, params.upstream, total_words);
  return ComputeLinearGradients(head.Logits(params.options.shape(), counted.rows),
                                gradients.gradients(), out);
}

}  // namespace varlen::cross_entropy_from_hidden
