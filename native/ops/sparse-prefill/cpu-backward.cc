// The CPU implementation of the backward pass: tiles over the thread pool, the work of one in
// gradient-inl.h, compiled per instruction set.
//
// dk and dv of a key are sums over the tiles that keep it, added in the order of the tiles: heads
// of a group in order, slashes first. Every block of keys knows how many tiles have added to it; a
// tile that comes to a block waits for its turn. Tiles are handed out in that order, so the one
// waited for is always running or done; in the steady state nobody waits, since tiles follow each
// other through the keys. The result is the same for any number of threads, and memory stays
// linear.
#include <atomic>
#include <memory>

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse-prefill/cpu-backward.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
#include "ops/sparse-prefill/gradient-inl.h"
//
#include "core/dispatch.h"
#include "ops/sparse-prefill/head.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// Keys whose sums are handed from tile to tile as one.
constexpr int64_t kSharedKeys = 256;
// Key/value heads are differentiated some at a time: their sums then take a bounded part of the
// memory, or one of them takes what it needs.
constexpr int64_t kSumBytes = int64_t{256} << 20;

// A block of keys, and how many tiles add to it before this one.
struct Turn {
  int32_t block, number;
};

// dk and dv of one key/value head of a sequence, not yet times the scale.
struct KeySums {
  int64_t sequence, kv_head;
  float *dk, *dv;                                 // [keys][stride], [keys][value_stride]
  std::unique_ptr<std::atomic<int32_t>[]> turns;  // [blocks of keys], tiles that have added
};

struct HeadGradient {
  int64_t sequence, head;
  Head tiles;
  KeySums* sums = nullptr;
  float* slash_dq = nullptr;  // [rows][stride], what slash tiles leave for the others; or none
};

struct GradientTask {
  const HeadGradient* head;
  Tile tile;
  std::vector<Turn> turns;  // blocks of keys that it adds to, ascending
};

// A tile's way through the blocks of keys that it adds to.
class Turns {
 public:
  Turns(const GradientTask& task, const std::atomic<bool>& failed)
      : next_(task.turns.data()), counts_(task.head->sums->turns.get()), failed_(failed) {}

  // Waits until earlier tiles have added to the block of key j. False when they never will.
  bool Enter(int64_t j) {
    if (held_ && next_->block != j / kSharedKeys) Leave();
    while (!held_) {
      if (Cancelled() || failed_.load(std::memory_order_relaxed)) return false;
      held_ = counts_[next_->block].load(std::memory_order_acquire) == next_->number;
      if (!held_) YieldThread();
    }
    return true;
  }
  // Nothing more comes to the blocks before key j's.
  void LeaveBefore(int64_t j) {
    if (held_ && next_->block != j / kSharedKeys) Leave();
  }
  void Leave() {
    if (!held_) return;
    counts_[next_->block].store(next_->number + 1, std::memory_order_release);
    held_ = false;
    ++next_;
  }

 private:
  const Turn* next_;
  std::atomic<int32_t>* counts_;
  const std::atomic<bool>& failed_;
  bool held_ = false;
};

template <class T, class Units>
void RunTask(const Backward& params, const GradientTask& task, const std::atomic<bool>& failed) {
  const HeadGradient& head = *task.head;
  const int64_t query_row = params.lengths.cu_seqlens_q.data()[head.sequence];
  const int64_t key_row = params.lengths.cu_seqlens_k.data()[head.sequence];
  const int64_t dim = params.q.shape[2], stride = RoundUp(dim, kLanes);
  const int64_t value_stride = RoundUp(params.v.shape[2], kLanes);
  const int64_t columns = head.tiles.sequence().k_length;
  int32_t rows[kTileRows];
  head.tiles.RowsOf(task.tile, rows);
  Workspace memory(ColumnSet::BytesFor(columns));
  ColumnSet set(memory, columns);
  GradientTile<T, Units> block(params, head.head, query_row, key_row, rows, task.tile.count);
  Turns turns(task, failed);
  bool alive = true;
  const auto add = [&](int64_t j, const float* dk, const float* dv) HWY_ATTR {
    alive = alive && turns.Enter(j);
    if (!alive) return;
    AddRow(dk, stride, head.sums->dk + j * stride);
    AddRow(dv, value_stride, head.sums->dv + j * value_stride);
  };
  head.tiles.ForColumns(task.tile, /*lines=*/false, set, [&](int64_t j, RowBits kept) HWY_ATTR {
    if (!alive) return;
    if (block.empty()) turns.LeaveBefore(j);
    if (block.Take(j, kept)) block.Flush(add);
  });
  if (alive) block.Flush(add);
  if (!alive) return;
  turns.Leave();
  for (int r = 0; r < task.tile.count; ++r) {
    const float* dq = block.dq(r);
    if (head.slash_dq != nullptr) {
      float* sum = head.slash_dq + rows[r] * stride;
      AddRow(dq, stride, sum);
      dq = sum;
    }
    if (task.tile.stage == Stage::kSlashes) continue;
    StoreScaledRow(dq, dim, params.lengths.softmax_scale,
                   ElementAt<T>(params.dq, query_row + rows[r], head.head));
  }
}

// Which blocks of keys each task adds to, and after how many others.
Status TakeTurns(std::vector<GradientTask>& tasks) {
  Status status = ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    GradientTask& task = tasks[static_cast<size_t>(i)];
    const int64_t columns = task.head->tiles.sequence().k_length;
    Workspace memory(ColumnSet::BytesFor(columns));
    ColumnSet set(memory, columns);
    task.head->tiles.ForColumns(task.tile, /*lines=*/false, set, [&](int64_t j, RowBits) {
      const auto shared = static_cast<int32_t>(j / kSharedKeys);
      if (task.turns.empty() || task.turns.back().block != shared)
        task.turns.push_back({shared, 0});
    });
  });
  for (GradientTask& task : tasks) {
    // Counted where the tiles themselves count later, which starts from 0 again.
    std::atomic<int32_t>* counts = task.head->sums->turns.get();
    for (Turn& turn : task.turns) turn.number = counts[turn.block]++;
  }
  for (GradientTask& task : tasks) {
    for (const Turn& turn : task.turns) task.head->sums->turns[turn.block] = 0;
  }
  return status;
}

template <class T, class Units>
Status RunTasks(const Backward& params, const std::vector<GradientTask>& tasks, int64_t begin,
                int64_t end, std::atomic<bool>& failed) {
  return ParallelFor(end - begin, [&](int64_t i, int) {
    if (Cancelled()) return;
    try {
      RunTask<T, Units>(params, tasks[static_cast<size_t>(begin + i)], failed);
    } catch (...) {
      failed.store(true);  // those who wait for this tile stop waiting
      throw;
    }
  });
}

template <class T>
void ZeroRows(const Tensor& tensor, int64_t begin) {
  for (int64_t row = begin; row < tensor.shape[0]; ++row) {
    for (int64_t head = 0; head < tensor.shape[1]; ++head) {
      std::fill_n(ElementAt<T>(tensor, row, head), tensor.shape[2], T(0.0f));
    }
  }
}

// Floats that the sums of one key/value head and its query heads take.
int64_t SumFloats(const HeadGradient* heads, int64_t group, int64_t stride, int64_t value_stride) {
  int64_t floats = heads[0].tiles.sequence().k_length * (stride + value_stride);
  for (int64_t g = 0; g < group; ++g) {
    if (heads[g].tiles.has_slashes()) floats += heads[g].tiles.sequence().q_length * stride;
  }
  return floats;
}

// Whole groups of query heads.
template <class T, class Units>
Status RunBatch(const Backward& params, std::vector<HeadGradient>& heads, int64_t group,
                int64_t floats) {
  const int64_t dim = params.q.shape[2], value_dim = params.v.shape[2];
  const int64_t stride = RoundUp(dim, kLanes), value_stride = RoundUp(value_dim, kLanes);
  Workspace memory(Workspace::BytesFor<float>(floats));
  float* next = memory.Take<float>(floats);
  std::fill_n(next, floats, 0.0f);
  const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
  std::vector<KeySums> sums(heads.size() / static_cast<size_t>(group));
  std::vector<GradientTask> tasks;
  for (size_t i = 0; i < heads.size(); ++i) {
    HeadGradient& head = heads[i];
    const SequenceInfo& sequence = head.tiles.sequence();
    KeySums& own = sums[i / static_cast<size_t>(group)];
    if (i % static_cast<size_t>(group) == 0) {
      const int64_t keys = sequence.k_length;
      const auto blocks = static_cast<size_t>((keys + kSharedKeys - 1) / kSharedKeys);
      own = {head.sequence, head.head / group, take(keys * stride), take(keys * value_stride),
             std::make_unique<std::atomic<int32_t>[]>(blocks)};
    }
    head.sums = &own;
    if (head.tiles.has_slashes()) head.slash_dq = take(sequence.q_length * stride);
  }
  for (const bool slashes : {true, false}) {
    for (const HeadGradient& head : heads) {
      for (const Tile& tile : head.tiles.tiles()) {
        if ((tile.stage == Stage::kSlashes) == slashes) tasks.push_back({&head, tile, {}});
      }
    }
  }
  Status status = TakeTurns(tasks);
  if (!status.ok()) return status;
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  const auto first = std::find_if(tasks.begin(), tasks.end(), [](const GradientTask& task) {
    return task.tile.stage != Stage::kSlashes;
  });
  const int64_t num_slashes = first - tasks.begin();
  std::atomic<bool> failed{false};
  status = RunTasks<T, Units>(params, tasks, 0, num_slashes, failed);
  if (status.ok()) status = RunTasks<T, Units>(params, tasks, num_slashes, num_tasks, failed);
  for (const KeySums& own : sums) {
    if (!status.ok()) break;
    const int64_t first_key = params.lengths.cu_seqlens_k.data()[own.sequence];
    const int64_t end_key = params.lengths.cu_seqlens_k.data()[own.sequence + 1];
    status = ParallelForRange(end_key - first_key, kSharedKeys, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        StoreScaledRow(own.dk + j * stride, dim, params.lengths.softmax_scale,
                       ElementAt<T>(params.dk, first_key + j, own.kv_head));
        StoreScaledRow(own.dv + j * value_stride, value_dim, 1.0f,
                       ElementAt<T>(params.dv, first_key + j, own.kv_head));
      }
    });
  }
  return status;
}

template <class T, class Units>
Status Differentiate(const Backward& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t num_seqs = plan.num_seqs(), num_heads = plan.num_heads();
  const int64_t group = num_heads / params.k.shape[1];
  const int64_t stride = RoundUp(params.q.shape[2], kLanes);
  const int64_t value_stride = RoundUp(params.v.shape[2], kLanes);
  ZeroRows<T>(params.dq, params.lengths.cu_seqlens_q.data()[num_seqs]);
  ZeroRows<T>(params.dk, params.lengths.cu_seqlens_k.data()[num_seqs]);
  ZeroRows<T>(params.dv, params.lengths.cu_seqlens_k.data()[num_seqs]);
  std::vector<HeadGradient> batch;
  int64_t floats = 0;
  for (int64_t i = 0; i < num_seqs * num_heads; ++i) {
    HeadGradient head{i / num_heads, i % num_heads, {}};
    status = head.tiles.Open(plan, head.sequence, head.head);
    if (!status.ok()) return status;
    batch.push_back(std::move(head));
    if ((i + 1) % group != 0) continue;
    floats +=
        SumFloats(&batch[batch.size() - static_cast<size_t>(group)], group, stride, value_stride);
    if (4 * floats < kSumBytes && i + 1 < num_seqs * num_heads) continue;
    status = RunBatch<T, Units>(params, batch, group, floats);
    if (!status.ok()) return status;
    batch.clear();
    floats = 0;
  }
  return {};
}

Status RunBackward(const Backward& params) {
#if HWY_TARGET == HWY_AVX3
  if (params.q.dtype == DType::kBF16 && ActiveIsa() == Isa::kAvx512Bf16) {
    return Differentiate<bfloat16, Bfloat16Units>(params);
  }
#endif
  return DispatchDType<float, bfloat16, half>(params.q.dtype, "q", [&]<class Scalar>() {
    return Differentiate<Scalar, FloatUnits>(params);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sparse_prefill {
namespace {
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::sparse_prefill
#endif
