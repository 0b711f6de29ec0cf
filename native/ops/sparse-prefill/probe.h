#pragma once

#include <cstdint>
#include <functional>

#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// Attention of a few rows, exactly: what patterns are estimated from and judged by. Vectorised.
namespace varlen::sparse_prefill {

// Up to 64 rows of one (sequence, head).
struct Probe {
  const Plan& params;
  const SequenceInfo& sequence;
  int64_t head;
  int64_t query_row, key_row;  // where the sequence starts in the packed tensors
  const int32_t* rows;         // of the chunk, ascending
  int count;
};

// Where the mass of slashes is counted: offset = coordinate of the row - coordinate of the key.
struct SlashCoordinates {
  const int32_t* row_at;  // [count]
  const int32_t* key_at;  // [k_length], -1: the key is not counted; null: positions
};

// A = softmax over all visible keys, row by row, never stored (two passes):
//   vertical[j] += sum_r A[r, j]        slash[o] += sum_r A[r, j] with row_at[r] - key_at[j] = o
// `slash` has `num_offsets` entries. Rows with scores that are not finite are left out; returns how
// many there are.
int ProbeMass(const Probe& probe, const SlashCoordinates& coordinates, float* vertical,
              float* slash, int64_t num_offsets);

// Entropy in nats of each probe row, without its first `sink` keys.
void ProbeEntropy(const Probe& probe, int64_t sink, float* entropy);

// Recall of each row: the attention mass that `head` keeps, exp(lse_plan - lse_full).
void ProbeRecall(const Probe& probe, const Head& head, double* recall);

// Reduced rows: means of blocks, or the antidiagonals of stride x stride squares (x-attention).
struct BlockScoring {
  int64_t block_rows, block_columns;
  int64_t stride;  // 0: means
};
// Calls emit(R, scores, n) for every block row that holds rows of the chunk, R ascending, with the
// share of attention that each of its n causal block columns is estimated to have.
void ScoreBlocks(const Probe& probe, const BlockScoring& scoring,
                 const std::function<void(int64_t, const float*, int64_t)>& emit);

}  // namespace varlen::sparse_prefill
