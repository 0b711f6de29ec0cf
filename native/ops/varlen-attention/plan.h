#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/varlen-attention/varlen-attention.h"

// Which rows belong to whom and which keys a row may see: what the two passes agree on before any
// arithmetic. Everything here depends on shapes and masks only, never on threads.
namespace varlen::varlen_attention {

// Used rows of one packed sequence, in rows of q and of k.
struct Sequence {
  int64_t q_begin = 0, q_length = 0;
  int64_t k_begin = 0, k_length = 0;
};

// Rows [begin, end) that belong to no sequence.
struct Gap {
  int64_t begin, end;
};

struct Rows {
  std::vector<Sequence> sequences;
  std::vector<Gap> q_gaps, k_gaps;
};
Rows RowsOf(const Options& options, int64_t total_q, int64_t total_k);

// Keys [begin, end) of one sequence.
struct KeyRange {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// causal and window as one interval of keys per query token; both ends never fall from one token
// to the next.
class Band {
 public:
  Band(const Options& options, const Sequence& sequence)
      : q_length_(sequence.q_length),
        k_length_(sequence.k_length),
        left_(options.window_left < 0 ? kFar : std::min(options.window_left, kFar)),
        right_(options.causal             ? 0
               : options.window_right < 0 ? kFar
                                          : std::min(options.window_right, kFar)) {}

  // Bottom-right alignment: the last query stands at the last key.
  int64_t Position(int64_t token) const { return token + k_length_ - q_length_; }
  KeyRange KeysOf(int64_t token) const {
    const int64_t position = Position(token);
    const int64_t begin = std::clamp<int64_t>(position - left_, 0, k_length_);
    return {begin, std::max(begin, std::clamp<int64_t>(position + right_ + 1, 0, k_length_))};
  }

 private:
  static constexpr int64_t kFar = int64_t{1} << 32;  // beyond any int32 offset
  int64_t q_length_, k_length_, left_, right_;
};

}  // namespace varlen::varlen_attention
