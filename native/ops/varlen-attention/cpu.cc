// The CPU implementation: tasks from plan.h over the thread pool, the work of one task from
// forward-inl.h and backward-inl.h, compiled per instruction set.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/varlen-attention/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "ops/varlen-attention/backward-inl.h"
#include "ops/varlen-attention/forward-inl.h"
//
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::varlen_attention {
namespace HWY_NAMESPACE {

template <class Params>
Problem ProblemOf(const Params& params, const Rows& rows, int32_t sequence, int32_t kv_head) {
  const int64_t num_heads = params.q.shape[1];
  return {params.options,   rows.sequences[static_cast<size_t>(sequence)],
          sequence,         kv_head,
          num_heads,        num_heads / params.k.shape[1],
          params.q.shape[2]};
}

// Rows [gap.begin, gap.end) of [rows, heads, D] become zero.
template <class T>
void ZeroRows(const Tensor& tensor, Gap gap) {
  for (int64_t row = gap.begin; row < gap.end; ++row) {
    for (int64_t head = 0; head < tensor.shape[1]; ++head) {
      std::fill_n(ElementAt<T>(tensor, row, head), tensor.shape[2], T(0.0f));
    }
  }
}

// Gaps in pieces that one thread clears in well under a millisecond.
constexpr int64_t kGapRows = 256;
int64_t CountPieces(const std::vector<Gap>& gaps) {
  int64_t pieces = 0;
  for (const Gap& gap : gaps) pieces += (gap.end - gap.begin + kGapRows - 1) / kGapRows;
  return pieces;
}
std::vector<Gap> CutGaps(const std::vector<Gap>& gaps) {
  std::vector<Gap> pieces;
  pieces.reserve(static_cast<size_t>(CountPieces(gaps)));
  for (const Gap& gap : gaps) {
    for (int64_t begin = gap.begin; begin < gap.end; begin += kGapRows) {
      pieces.push_back({begin, std::min(gap.end, begin + kGapRows)});
    }
  }
  return pieces;
}

// Partial results of one split: max, sum and out of every row, one after the other.
struct Partials {
  float* data;
  int64_t rows, stride;
  int64_t size() const { return rows * (stride + 2); }
  float* Max(int64_t partial) const { return data + partial * size(); }
  float* Sum(int64_t partial) const { return Max(partial) + rows; }
  float* Out(int64_t partial) const { return Max(partial) + 2 * rows; }
};

// out = sum_s 2^(max_s - max) out_s / sum_s 2^(max_s - max) sum_s, over splits in order.
template <class T>
void MergeSplits(const Forward& params, const Problem& problem, const MergeTask& merge,
                 const Partials& partials) {
  Workspace memory(Workspace::BytesFor<float>(partials.stride));
  float* out = memory.Take<float>(partials.stride);
  const Floats d;
  for (int64_t r = 0; r < merge.first.rows; ++r) {
    float max = -kInfinity;
    for (int64_t s = 0; s < merge.splits; ++s) {
      max = std::max(max, partials.Max(merge.first.partial + s)[r]);
    }
    const float shift = max == -kInfinity ? 0.0f : max;
    float sum = 0;
    std::fill_n(out, partials.stride, 0.0f);
    for (int64_t s = 0; s < merge.splits; ++s) {
      const int64_t partial = merge.first.partial + s;
      const float factor = std::exp2(partials.Max(partial)[r] - shift);
      sum += factor * partials.Sum(partial)[r];
      const float* from = partials.Out(partial) + r * partials.stride;
      for (int64_t i = 0; i < partials.stride; i += kLanes) {
        const Vector scaled =
            hn::MulAdd(hn::LoadU(d, from + i), hn::Set(d, factor), hn::LoadU(d, out + i));
        hn::StoreU(scaled, d, out + i);
      }
    }
    FinishRow<T>(params, problem, merge.first.row_begin + r, max, sum, out);
  }
}

template <class T, class Units>
Status Attend(const Forward& params) {
  const Rows rows = RowsOf(params.options, params.q.shape[0], params.k.shape[0]);
  const ForwardPlan plan = PlanForward(params, rows);
  const std::vector<Gap> gaps = CutGaps(rows.q_gaps);
  const int64_t stride = RoundUp(params.q.shape[2], kLanes);
  Partials partials{nullptr, plan.max_rows, stride};
  Workspace memory(Workspace::BytesFor<float>(plan.partials * partials.size()));
  partials.data = memory.Take<float>(plan.partials * partials.size());

  const int64_t num_tasks = static_cast<int64_t>(plan.tasks.size());
  Status status =
      ParallelFor(num_tasks + static_cast<int64_t>(gaps.size()), [&](int64_t piece, int) HWY_ATTR {
        if (piece >= num_tasks) {
          const Gap& gap = gaps[static_cast<size_t>(piece - num_tasks)];
          ZeroRows<T>(params.out, gap);
          const int64_t total = params.q.shape[0];
          for (int64_t head = 0; head < params.q.shape[1]; ++head) {
            float* lse = params.softmax_lse.data<float>() + head * total;
            std::fill(lse + gap.begin, lse + gap.end, -kInfinity);
          }
          return;
        }
        const ForwardTask& task = plan.tasks[static_cast<size_t>(piece)];
        const Problem problem = ProblemOf(params, rows, task.sequence, task.kv_head);
        ForwardBlock<T, Units> block(params, problem, task.row_begin, task.rows);
        const int64_t splits = task.partial < 0 ? 1
                                                : SplitsOf(problem.sequence, problem.group,
                                                           params.k.shape[1], params.num_splits);
        block.Gather(KeysOfSplit(problem.sequence, task.split, splits));
        const Gathered& gathered = block.gathered();
        if (task.partial >= 0) {
          std::copy_n(gathered.max, task.rows, partials.Max(task.partial));
          std::copy_n(gathered.sum, task.rows, partials.Sum(task.partial));
          std::copy_n(gathered.out, task.rows * stride, partials.Out(task.partial));
          return;
        }
        for (int64_t r = 0; r < task.rows; ++r) {
          FinishRow<T>(params, problem, task.row_begin + r, gathered.max[r], gathered.sum[r],
                       gathered.out + r * stride);
        }
      });
  if (!status.ok() || plan.merges.empty()) return status;
  return ParallelFor(static_cast<int64_t>(plan.merges.size()), [&](int64_t piece, int) HWY_ATTR {
    const MergeTask& merge = plan.merges[static_cast<size_t>(piece)];
    MergeSplits<T>(params, ProblemOf(params, rows, merge.first.sequence, merge.first.kv_head),
                   merge, partials);
  });
}

template <class T, class Units>
Status Differentiate(const Backward& params) {
  const Rows rows = RowsOf(params.options, params.q.shape[0], params.k.shape[0]);
  const BackwardPlan plan = PlanBackward(params, rows);
  const std::vector<Gap> q_gaps = CutGaps(rows.q_gaps), k_gaps = CutGaps(rows.k_gaps);
  const int64_t group = params.q.shape[1] / params.k.shape[1];
  const int64_t stride = RoundUp(params.q.shape[2], kLanes);

  Workspace memory(Workspace::BytesFor<float>(plan.num_rows * stride) +
                   Workspace::BytesFor<std::atomic<int32_t>>(plan.num_row_blocks));
  float* dq_sum = memory.Take<float>(plan.num_rows * stride);
  auto* progress = memory.Take<std::atomic<int32_t>>(plan.num_row_blocks);
  for (int64_t i = 0; i < plan.num_row_blocks; ++i) new (progress + i) std::atomic<int32_t>(-1);
  std::atomic<bool> failed{false};

  const int64_t tasks_end = static_cast<int64_t>(plan.tasks.size());
  const int64_t dead_end = tasks_end + static_cast<int64_t>(plan.dead.size());
  const int64_t q_gaps_end = dead_end + static_cast<int64_t>(q_gaps.size());
  const int64_t pieces = q_gaps_end + static_cast<int64_t>(k_gaps.size());
  return ParallelFor(pieces, [&](int64_t piece, int) HWY_ATTR {
    if (piece < tasks_end) {
      const BackwardTask& task = plan.tasks[static_cast<size_t>(piece)];
      const Problem problem = ProblemOf(params, rows, task.sequence, task.kv_head);
      const size_t b = static_cast<size_t>(task.sequence);
      float* dq = dq_sum + (plan.first_row[b] + task.kv_head * problem.rows()) * stride;
      auto* counters =
          progress + plan.first_row_block[b] + task.kv_head * problem.sequence.RowBlocks(group);
      try {
        BackwardBlock<T, Units>(params, problem, task.key_block, dq, counters, failed).Run();
      } catch (...) {
        failed.store(true);  // those who wait for this task stop waiting
        throw;
      }
    } else if (piece < dead_end) {
      const DeadRows& dead = plan.dead[static_cast<size_t>(piece - tasks_end)];
      const Problem problem = ProblemOf(params, rows, dead.sequence, dead.kv_head);
      const int64_t end = std::min(problem.rows(), (dead.row_block + 1) * kRowBlock);
      for (int64_t row = dead.row_block * kRowBlock; row < end; ++row) {
        std::fill_n(ElementAt<T>(params.dq, problem.QueryRow(row), problem.HeadOf(row)),
                    problem.head_dim, T(0.0f));
      }
    } else if (piece < q_gaps_end) {
      ZeroRows<T>(params.dq, q_gaps[static_cast<size_t>(piece - dead_end)]);
    } else {
      const Gap& gap = k_gaps[static_cast<size_t>(piece - q_gaps_end)];
      ZeroRows<T>(params.dk, gap);
      ZeroRows<T>(params.dv, gap);
    }
  });
}

Status RunForward(const Forward& params) {
#if HWY_TARGET == HWY_AVX3
  if (params.q.dtype == DType::kBF16 && ActiveIsa() == Isa::kAvx512Bf16) {
    return Attend<bfloat16, Bfloat16Units>(params);
  }
#endif
  return DispatchDType<float, bfloat16, half>(
      params.q.dtype, "q", [&]<class Scalar>() { return Attend<Scalar, FloatUnits>(params); });
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
}  // namespace varlen::varlen_attention
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::varlen_attention {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::varlen_attention
#endif
