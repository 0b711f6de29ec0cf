#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "ops/varlen-attention/varlen-attention.h"

// What the attention tests share: packs with random contents, runs of the three implementations
// (the op, the double reference, the plain same-dtype baseline), and comparisons.
namespace varlen::varlen_attention::testing {

using Ints = std::vector<int32_t>;

inline HostOrTensor<int32_t> Host(const Ints& values) {
  return {std::make_shared<const Ints>(values), {}};
}
inline HostOrTensor<float> Host(const std::vector<float>& values) {
  return {std::make_shared<const std::vector<float>>(values), {}};
}
// The same values as a tensor that is read when the op runs.
HostOrTensor<int32_t> OnDevice(const Ints& values);

// How a pack is laid out and filled.
struct Pack {
  DType dtype = DType::kF32;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  Ints slots_q;                   // rows of each sequence's slot
  Ints slots_k = {};              // empty: as slots_q
  Ints used_q = {};               // rows used of each slot; empty: all
  Ints used_k = {};               // likewise
  int64_t tail_q = 0;             // rows past the last slot
  int64_t tail_k = 0;             // likewise
  uint64_t seed = 1;              // of the contents
  bool exact_in_16_bits = false;  // every value is the same number in every dtype
};

// One call: inputs, options and the gradients that arrive.
struct Case {
  Tensor q, k, v, d_out;
  Tensor d_lse;  // float32; the backward gets it only when with_d_lse
  bool with_d_lse = false;
  Options options;
  int64_t num_splits = 0;
};

struct Results {
  Tensor out, softmax_lse, dq, dk, dv;
};

// Normal random contents in the rows that belong to a sequence, NaN in all other rows.
Case MakeCase(const Pack& pack);

enum class Which { kForward, kBoth };
// Runs the op on the CPU. Every output is filled with NaN first, and so is the scratch memory.
Results RunOp(const Case& c, Which which = Which::kBoth);
Results RunDouble(const Case& c, Which which = Which::kBoth);  // RunReference
Results RunPlain(const Case& c, Which which = Which::kBoth);   // plain.h

// Sequence b of the case on its own: the same rows, B = 1, no tail.
Case Alone(const Case& c, int64_t b);

int64_t NumSeqs(const Case& c);
struct Rows {
  int64_t first, used, slot;
};
Rows RowsQ(const Case& c, int64_t b);
Rows RowsK(const Case& c, int64_t b);

// Element access for any float dtype, [i, j, d] or [i, j].
double Get(const Tensor& tensor, int64_t i, int64_t j, int64_t d = 0);
void Set(const Tensor& tensor, double value, int64_t i, int64_t j, int64_t d = 0);
// A contiguous copy of rows first .. first + count - 1 (of the last dimension for softmax_lse,
// which has `dimension` 1).
Tensor SliceRows(const Tensor& tensor, int64_t first, int64_t count, int dimension = 0);
Tensor CopyAs(const Tensor& tensor, DType dtype);
void Fill(const Tensor& tensor, double value);
// Normal random values; with exact_in_16_bits each is a number that both 16-bit dtypes hold.
void FillNormal(const Tensor& tensor, uint64_t seed, bool exact_in_16_bits = false);
// What a value becomes when it is stored as `dtype`.
double Rounded(double value, DType dtype);
// Fills the cached scratch memory of every pool thread with NaN.
void PoisonScratch();

// Empty when equal, else a sentence with the first position that differs.
std::string BitDifference(const Tensor& a, const Tensor& b);
std::string BitDifference(const Results& a, const Results& b);

// Largest |a - b|; NaN and infinities must match in place, or the answer is infinite.
double MaxError(const Tensor& a, const Tensor& b);
double MeanError(const Tensor& a, const Tensor& b);
double MaxAbs(const Tensor& tensor);

// The rule of the accuracy tests; empty when it holds, else what broke it. See test-case.cc.
std::string Inaccuracy(const Case& c, const Results& got, const Results& reference,
                       const Results& plain, Which which = Which::kBoth);
// Runs all three and compares.
std::string Inaccuracy(const Case& c, Which which = Which::kBoth);

std::string Describe(const Case& c);

// Every mask and score option, alone and combined, that is legal for any pack.
struct Variant {
  std::string name;
  void (*apply)(Case& c);
};
const std::vector<Variant>& Variants();
const Variant& Named(const std::string& name);

// Ends of a random forest of `length` nodes in depth-first order, relative to the sequence.
Ints RandomTree(int32_t length, uint64_t seed);
// Gives every sequence of a self-attention pack a random tree, and the causal mask it needs.
void AddTrees(Case& c, uint64_t seed);

}  // namespace varlen::varlen_attention::testing
