#include "ops/varlen-attention/plan.h"

#include <numeric>

#include "core/parallel.h"

namespace varlen::varlen_attention {

Rows RowsOf(const Options& options, int64_t total_q, int64_t total_k) {
  const int64_t num_seqs = options.cu_seqlens_q.size() - 1;
  const int32_t* cu_q = options.cu_seqlens_q.data();
  const int32_t* cu_k = options.cu_seqlens_k ? options.cu_seqlens_k.data() : cu_q;
  const int32_t* used_q = options.seq_used_q ? options.seq_used_q.data() : nullptr;
  const int32_t* used_k = options.seq_used_k ? options.seq_used_k.data() : nullptr;

  Rows rows;
  rows.sequences.resize(static_cast<size_t>(num_seqs));
  int64_t q_owned = 0, k_owned = 0;  // rows before these are in a sequence or in a gap
  const auto own = [](std::vector<Gap>& gaps, int64_t& owned, int64_t begin, int64_t length) {
    if (length > 0 && begin > owned) gaps.push_back({owned, begin});
    if (length > 0) owned = begin + length;
  };
  for (int64_t b = 0; b < num_seqs; ++b) {
    Sequence& s = rows.sequences[static_cast<size_t>(b)];
    s.q_begin = cu_q[b];
    s.k_begin = cu_k[b];
    s.q_length = used_q != nullptr ? used_q[b] : cu_q[b + 1] - cu_q[b];
    s.k_length = used_k != nullptr ? used_k[b] : cu_k[b + 1] - cu_k[b];
    own(rows.q_gaps, q_owned, s.q_begin, s.q_length);
    own(rows.k_gaps, k_owned, s.k_begin, s.k_length);
  }
  if (q_owned < total_q) rows.q_gaps.push_back({q_owned, total_q});
  if (k_owned < total_k) rows.k_gaps.push_back({k_owned, total_k});
  return rows;
}

LiveBlocks::LiveBlocks(const Options& options, const Sequence& sequence, int64_t group)
    : sequence_(sequence),
      band_(options, sequence),
      tree_(options.key_end ? options.key_end.data() + sequence.k_begin : nullptr),
      group_(group) {}

int64_t LiveBlocks::TreeEnd(int64_t key_block) const {
  const KeyRange keys = KeysOfBlock(key_block);
  return *std::max_element(tree_ + keys.begin, tree_ + keys.end);
}

KeyRange LiveBlocks::BandBlocks(int64_t row_block) const {
  const int64_t begin = band_.KeysOf(FirstToken(row_block)).begin;
  const int64_t end = band_.KeysOf(LastToken(row_block)).end;
  if (begin >= end) return {0, 0};
  return {begin / kKeyBlock, (end + kKeyBlock - 1) / kKeyBlock};
}

bool LiveBlocks::operator()(int64_t row_block, int64_t key_block) const {
  const KeyRange blocks = BandBlocks(row_block);
  if (key_block < blocks.begin || key_block >= blocks.end) return false;
  return tree_ == nullptr || TreeEnd(key_block) > FirstToken(row_block);
}

int64_t LiveBlocks::FirstRowBlock(int64_t key_block) const {
  return band_.TokensOf(KeysOfBlock(key_block)).first * group_ / kRowBlock;
}

int64_t LiveBlocks::EndRowBlock(int64_t key_block) const {
  int64_t end = band_.TokensOf(KeysOfBlock(key_block)).second;
  if (tree_ != nullptr) end = std::min(end, TreeEnd(key_block));
  return (end * group_ + kRowBlock - 1) / kRowBlock;
}

int64_t LiveBlocks::Previous(int64_t row_block, int64_t key_block) const {
  const KeyRange blocks = BandBlocks(row_block);
  for (int64_t b = std::min(key_block, blocks.end) - 1; b >= blocks.begin; --b) {
    if (tree_ == nullptr || TreeEnd(b) > FirstToken(row_block)) return b;
  }
  return -1;
}

int64_t LiveBlocks::Next(int64_t row_block, int64_t key_block) const {
  const KeyRange blocks = BandBlocks(row_block);
  for (int64_t b = std::max(key_block + 1, blocks.begin); b < blocks.end; ++b) {
    if (tree_ == nullptr || TreeEnd(b) > FirstToken(row_block)) return b;
  }
  return -1;
}

namespace {

// Kept (row, key) pairs of rows [begin, end), near enough to order tasks by: the band is exact at
// three tokens, a tree is sampled.
double PairsOf(const Options& options, const Sequence& sequence, int64_t group, int64_t begin,
               int64_t end) {
  const Band band(options, sequence);
  const int64_t first = begin / group, last = (end - 1) / group;
  const auto keys = [&](int64_t token) {
    const KeyRange range = band.KeysOf(token);
    return static_cast<double>(range.end - range.begin);
  };
  double per_row = (keys(first) + 4 * keys((first + last) / 2) + keys(last)) / 6;
  if (options.key_end) {
    const int32_t* tree = options.key_end.data() + sequence.k_begin;
    const int64_t end = band.KeysOf(last).end;
    const int64_t step = std::max(kKeyBlock, end / 64);  // at most 64 keys stand for all
    int64_t live = 0, seen = 0;
    for (int64_t j = 0; j < end; j += step) {
      ++seen;
      live += tree[j] > first ? 1 : 0;
    }
    if (seen > 0) per_row *= static_cast<double>(live) / static_cast<double>(seen);
  }
  return per_row * static_cast<double>(end - begin);
}

// Rows of a forward task. More rows share the packing of keys and values (2 % of the time at 128);
// fewer spread a small pack over all threads. A row's bits do not depend on it.
int64_t RowsPerTask(const Forward& params, const Rows& rows) {
  const int64_t kv_heads = params.k.shape[1], group = params.q.shape[1] / kv_heads;
  int64_t largest = params.q.shape[2] <= 128 ? 256 : 128;
  for (; largest > 64; largest /= 2) {
    int64_t tasks = 0;
    for (const Sequence& s : rows.sequences) {
      tasks += kv_heads * ((s.q_length * group + largest - 1) / largest);
    }
    if (tasks >= 8 * NumThreads()) break;
  }
  return largest;
}

template <class T>
std::vector<size_t> OrderByCost(const std::vector<T>& costs) {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return costs[a] > costs[b]; });
  return order;
}

}  // namespace

int64_t SplitsOf(const Sequence& sequence, int64_t group, int64_t num_kv_heads, int64_t asked) {
  const int64_t blocks = sequence.KeyBlocks();
  if (asked > 0) return std::max<int64_t>(1, std::min(asked, blocks));
  const int64_t tasks = num_kv_heads * sequence.RowBlocks(group);
  if (tasks == 0 || tasks >= 16) return 1;
  return std::max<int64_t>(1, std::min((15 + tasks) / tasks, blocks / 8));
}

KeyRange KeysOfSplit(const Sequence& sequence, int64_t split, int64_t splits) {
  const int64_t blocks = sequence.KeyBlocks();
  return {blocks * split / splits * kKeyBlock,
          std::min(sequence.k_length, blocks * (split + 1) / splits * kKeyBlock)};
}

ForwardPlan PlanForward(const Forward& params, const Rows& rows) {
  const int64_t kv_heads = params.k.shape[1], group = params.q.shape[1] / kv_heads;
  ForwardPlan plan;
  plan.max_rows = RowsPerTask(params, rows);

  struct RowBlock {
    int32_t sequence, rows;
    int64_t row_begin, splits;
  };
  std::vector<RowBlock> blocks;
  std::vector<double> costs;
  for (size_t b = 0; b < rows.sequences.size(); ++b) {
    const Sequence& s = rows.sequences[b];
    const int64_t count = s.q_length * group;
    const int64_t splits = SplitsOf(s, group, kv_heads, params.num_splits);
    for (int64_t begin = 0; begin < count; begin += plan.max_rows) {
      const int64_t end = std::min(count, begin + plan.max_rows);
      blocks.push_back({static_cast<int32_t>(b), static_cast<int32_t>(end - begin), begin, splits});
      costs.push_back(PairsOf(params.options, s, group, begin, end) / static_cast<double>(splits));
    }
  }
  plan.tasks.reserve(blocks.size() * static_cast<size_t>(kv_heads));
  for (size_t index : OrderByCost(costs)) {
    const RowBlock& block = blocks[index];
    for (int64_t head = 0; head < kv_heads; ++head) {
      ForwardTask task{
          block.sequence, static_cast<int32_t>(head), block.rows, 0, block.row_begin, -1};
      if (block.splits == 1) {
        plan.tasks.push_back(task);
        continue;
      }
      task.partial = plan.partials;
      plan.merges.push_back({task, block.splits});
      for (int64_t split = 0; split < block.splits; ++split) {
        task.split = static_cast<int32_t>(split);
        task.partial = plan.partials++;
        plan.tasks.push_back(task);
      }
    }
  }
  return plan;
}

BackwardPlan PlanBackward(const Backward& params, const Rows& rows) {
  const int64_t kv_heads = params.k.shape[1], group = params.q.shape[1] / kv_heads;
  BackwardPlan plan;
  std::vector<double> costs;
  for (size_t b = 0; b < rows.sequences.size(); ++b) {
    const Sequence& s = rows.sequences[b];
    const LiveBlocks live(params.options, s, group);
    const int64_t row_blocks = s.RowBlocks(group);
    plan.first_row.push_back(plan.num_rows);
    plan.first_row_block.push_back(plan.num_row_blocks);
    plan.num_rows += s.q_length * group * kv_heads;
    plan.num_row_blocks += row_blocks * kv_heads;
    const int64_t count = s.q_length * group;
    costs.push_back(count == 0 ? 0.0 : PairsOf(params.options, s, group, 0, count));
    for (int64_t block = 0; block < row_blocks; ++block) {
      if (live.Next(block, -1) >= 0) continue;
      for (int64_t head = 0; head < kv_heads; ++head) {
        plan.dead.push_back({static_cast<int32_t>(b), static_cast<int32_t>(head), block});
      }
    }
  }
  for (size_t b : OrderByCost(costs)) {
    const int64_t key_blocks = rows.sequences[b].KeyBlocks();
    for (int64_t head = 0; head < kv_heads; ++head) {
      for (int64_t block = 0; block < key_blocks; ++block) {
        plan.tasks.push_back(
            {static_cast<int32_t>(b), static_cast<int32_t>(head), static_cast<int32_t>(block)});
      }
    }
  }
  return plan;
}

}  // namespace varlen::varlen_attention
