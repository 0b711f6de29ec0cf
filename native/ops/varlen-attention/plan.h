#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/varlen-attention/varlen-attention.h"

// Which rows belong to whom, which keys a row may see and how the work is cut: what the two passes
// agree on before any arithmetic. Everything that can change a bit of the result depends on one
// sequence's own shape and mask only, never on its neighbours in the pack nor on threads.
namespace varlen::varlen_attention {

// Keys are worked on in blocks that start at multiples of this. 128: keys and values of a block
// (128 KiB in float32 at D = 128) stay in the second-level cache beside a block of rows.
inline constexpr int64_t kKeyBlock = 128;
// Rows of the backward pass likewise; its inner products then are 128 deep in both directions.
inline constexpr int64_t kRowBlock = 128;

// Used rows of one packed sequence, in rows of q and of k.
struct Sequence {
  int64_t q_begin = 0, q_length = 0;
  int64_t k_begin = 0, k_length = 0;

  int64_t KeyBlocks() const { return (k_length + kKeyBlock - 1) / kKeyBlock; }
  int64_t RowBlocks(int64_t group) const { return (q_length * group + kRowBlock - 1) / kRowBlock; }
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
  // Tokens [first, second) that keep some key of the range, a hull.
  std::pair<int64_t, int64_t> TokensOf(KeyRange keys) const {
    const int64_t shift = k_length_ - q_length_;
    return {std::clamp<int64_t>(keys.begin - right_ - shift, 0, q_length_),
            std::clamp<int64_t>(keys.end + left_ - shift, 0, q_length_)};
  }

 private:
  static constexpr int64_t kFar = int64_t{1} << 32;  // beyond any int32 offset
  int64_t q_length_, k_length_, left_, right_;
};

// Which blocks of rows (packed: token, head of group) keep keys of which blocks of keys.
class LiveBlocks {
 public:
  LiveBlocks(const Options& options, const Sequence& sequence, int64_t group);

  bool operator()(int64_t row_block, int64_t key_block) const;
  // The hull of live row blocks of a key block.
  int64_t FirstRowBlock(int64_t key_block) const;
  int64_t EndRowBlock(int64_t key_block) const;
  // The nearest live key block before or after `key_block`, or -1.
  int64_t Previous(int64_t row_block, int64_t key_block) const;
  int64_t Next(int64_t row_block, int64_t key_block) const;

 private:
  // Key blocks [begin, end) that the band leaves to a row block.
  KeyRange BandBlocks(int64_t row_block) const;
  int64_t FirstToken(int64_t row_block) const { return row_block * kRowBlock / group_; }
  int64_t LastToken(int64_t row_block) const {
    return (std::min((row_block + 1) * kRowBlock, sequence_.q_length * group_) - 1) / group_;
  }
  KeyRange KeysOfBlock(int64_t key_block) const {
    return {key_block * kKeyBlock, std::min(sequence_.k_length, (key_block + 1) * kKeyBlock)};
  }
  // The last row, exclusive, that sees a key of the block.
  int64_t TreeEnd(int64_t key_block) const;

  Sequence sequence_;
  Band band_;
  const int32_t* tree_;  // of the sequence; null without key_end
  int64_t group_;
};

// A block of rows of one (sequence, key/value head) against one of `splits` ranges of its keys.
struct ForwardTask {
  int32_t sequence;
  int32_t kv_head;
  int32_t rows;
  int32_t split;
  int64_t row_begin;
  int64_t partial;  // where the split's result waits for the merge; -1 when there is one split
};
// The rows of a task with several splits, whose partial results are merged in the order of keys.
struct MergeTask {
  ForwardTask first;  // split 0
  int64_t splits;
};
struct ForwardPlan {
  int64_t max_rows = 0;  // of a task
  int64_t partials = 0;
  std::vector<ForwardTask> tasks;  // the most expensive first
  std::vector<MergeTask> merges;
};
ForwardPlan PlanForward(const Forward& params, const Rows& rows);

// Splits of a sequence's keys: what was asked for, else enough to keep 16 threads busy when the
// sequence has few blocks of rows, each split worth at least 1024 keys.
int64_t SplitsOf(const Sequence& sequence, int64_t group, int64_t num_kv_heads, int64_t asked);
KeyRange KeysOfSplit(const Sequence& sequence, int64_t split, int64_t splits);

struct BackwardTask {
  int32_t sequence;
  int32_t kv_head;
  int32_t key_block;
};
// Rows of dq that keep no key.
struct DeadRows {
  int32_t sequence;
  int32_t kv_head;
  int64_t row_block;
};
struct BackwardPlan {
  // Expensive problems first; the key blocks of a problem are in order.
  std::vector<BackwardTask> tasks;
  std::vector<DeadRows> dead;
  // Per sequence, the first of its rows (token x head) and row blocks among all of them.
  std::vector<int64_t> first_row, first_row_block;
  int64_t num_rows = 0, num_row_blocks = 0;
};
BackwardPlan PlanBackward(const Backward& params, const Rows& rows);

}  // namespace varlen::varlen_attention
