#pragma once

#include <cstdint>

#include "core/linear-logits.h"

// The same statistics and gradients as linear-logits.h, from logits that exist. Each logit is read
// once per pass; a row's bits depend on that row alone.
namespace varlen {

struct DenseLogits {
  DType dtype;         // float32, bfloat16, float16
  const void* logits;  // [.., vocab_size], rows `stride` apart: u of linear-logits.h
  int64_t stride;
  const int32_t* rows;  // [num_rows]: the rows that count; no other is read
  int64_t num_rows;
  int64_t vocab_size;
  LogitShape shape;
};

Status ComputeRowStatistics(const DenseLogits& logits, const int32_t* targets,
                            const RowStatistics& out, const RowWords& words = {});

// Writes du of the counted rows into d_logits, of the dtype and rows of `logits`.
Status ComputeLogitGradients(const DenseLogits& logits, const LogitGradients& gradients,
                             void* d_logits, int64_t d_stride);

}  // namespace varlen
