#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"
#include "core/tensor.h"

// Losses over a vocabulary from hidden states and the head's weight, without the logits: they exist
// a tile at a time, are reduced to a few numbers per row, and computed again for the gradient
// (Wijmans et al. 2024, "Cut your losses").
//
//   u[t, v] = hidden[t] . weight[v] + bias[v]
//   z[t, v] = cap(logit_scale * u[t, v]) / temperature, cap(x) = softcap tanh(x / softcap) or x
//   lse[t]  = ln sum_v e^z[t, v],   p[t, v] = e^(z[t, v] - lse[t])
//
// Bits of a row's numbers depend on its own hidden state, the weight and the instruction set: not
// on threads, nor on the other rows. dWeight sums rows in order, each tile of the vocabulary by one
// worker.
namespace varlen {

struct LogitShape {
  float temperature = 1;
  float softcap = 0;  // 0: off
  float logit_scale = 1;
};

struct LinearLogits {
  DType dtype;         // of hidden, weight and bias: float32, bfloat16, float16
  const void* hidden;  // [.., hidden_size], rows hidden_stride apart
  int64_t hidden_stride;
  const int32_t* rows;  // [num_rows]: the rows of hidden that count; no other is read
  int64_t num_rows;
  const void* weight;  // [vocab_size, hidden_size], rows weight_stride apart
  int64_t weight_stride;
  const void* bias;  // [vocab_size] or null
  int64_t vocab_size, hidden_size;
  LogitShape shape;
};

// Per counted row; a null array is not wanted.
struct RowStatistics {
  double* lse;
  float* target_logit;  // z at targets[row]
  float* entropy;       // -sum_v p ln p
  float* sum_squares;   // sum_v p^2
  float* mean_logit;    // sum_v z / vocab_size
};

struct WordLogit {
  int32_t word;
  float logit;  // z
};

// Logits of each counted row that are wanted one by one: those of given words, or the largest.
struct RowWords {
  int64_t per_row = 0;           // 0: none; at most vocab_size
  WordLogit* entries = nullptr;  // [num_rows, per_row], ascending words
  bool largest = false;  // words are found, equal logits from the lowest; else they are given
};

// targets: [num_rows], in [0, vocab_size); null when no target logit is wanted.
Status ComputeRowStatistics(const LinearLogits& logits, const int32_t* targets,
                            const RowStatistics& out, const RowWords& words = {});

// The dense part of a row's gradient: dz[v] = p[v] (scale + slope ln p[v]) + offset.
struct DenseGradient {
  float scale, slope, offset;
};

// dz of every counted row: its dense part, and at the words words[row * per_row + i], which ascend
// within a row, sparse[row * per_row + i] more (equal words add up), or that alone.
struct LogitGradients {
  const double* lse;
  const DenseGradient* dense;
  int64_t per_row;
  const int32_t* words;
  const float* sparse;
  bool sparse_alone = false;  // for sums of the two that would cancel
};

// Where gradients go; null: not wanted. Rows of d_hidden are those of hidden; uncounted ones are
// the caller's business.
struct LinearGradients {
  void* d_hidden;  // dtype of hidden
  int64_t d_hidden_stride;
  float* d_weight;  // [vocab_size, hidden_size], overwritten
  float* d_bias;    // [vocab_size], overwritten
  // Tiles of du (a few rows x a few words, the same for any thread count) in which every |du| is
  // below this count as 0.
  float skip_below = 0;
};

// Sets rows of a [rows, columns] tensor to zero, but for those in `counted`, which ascend.
Status ClearOtherRows(const Tensor& tensor, const std::vector<int32_t>& counted);

Status ComputeLinearGradients(const LinearLogits& logits, const LogitGradients& gradients,
                              const LinearGradients& out);

}  // namespace varlen
