// The CPU implementation of a run: tiles over the thread pool, the work of one in tile-inl.h,
// compiled per instruction set.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse-prefill/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "ops/sparse-prefill/tile-inl.h"
//
#include "core/dispatch.h"
#include "ops/sparse-prefill/head.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// What the slash tiles of a head leave for its other tiles: max (base 2), sum and weighted values.
struct Partial {
  float* data = nullptr;
  int64_t rows = 0, stride = 0;
  static int64_t SizeFor(int64_t rows, int64_t stride) { return rows * (stride + 2); }
  float* max(int64_t row) const { return data + row; }
  float* sum(int64_t row) const { return data + rows + row; }
  float* out(int64_t row) const { return data + 2 * rows + row * stride; }
};

// Divides by the sum and stores out and softmax_lse of one row. No key kept: 0 and -inf.
template <class T>
void FinishRow(const Forward& params, int64_t row, int64_t head, float max, float sum,
               const float* gathered) {
  const Floats d;
  // All scores NaN: the maximum is -inf too, but the sum is NaN and stays so.
  const bool empty = max == -kInfinity && sum == 0;
  const int64_t dim = params.v.shape[2];
  const Vector inverse = hn::Set(d, empty ? 0.0f : 1.0f / sum);
  T* out = ElementAt<T>(params.out, row, head);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    StoreFromFloat(hn::Mul(hn::LoadU(d, gathered + i), inverse), out + i);
  }
  if (i < dim) StoreFirst(hn::Mul(hn::LoadU(d, gathered + i), inverse), out + i, dim - i);
  params.softmax_lse.data<float>()[head * params.q.shape[0] + row] =
      empty ? -kInfinity : max * kLn2 + std::log(sum);
}

// max, sum and out of two partial results over disjoint keys, into the second.
void MergeRow(float max1, float sum1, const float* out1, int64_t n, float* max2, float* sum2,
              float* out2) {
  const Floats d;
  const float max = std::max(max1, *max2);
  const float shift = max == -kInfinity ? 0.0f : max;
  const float factor1 = std::exp2(max1 - shift), factor2 = std::exp2(*max2 - shift);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector scaled = hn::Mul(hn::LoadU(d, out1 + i), hn::Set(d, factor1));
    hn::StoreU(hn::MulAdd(hn::LoadU(d, out2 + i), hn::Set(d, factor2), scaled), d, out2 + i);
  }
  *sum2 = factor1 * sum1 + factor2 * *sum2;
  *max2 = max;
}

// Heads are read and their slash tiles computed some at a time: partial results then take a
// bounded part of the memory.
constexpr int64_t kPartialBytes = int64_t{256} << 20;

struct Problem {
  int64_t sequence, head;
  Head tiles;
  Partial partial;
};
// A tile, or two that share what is gathered for them.
struct Work {
  int32_t problem;
  Tile tile;
  Tile second;  // of no rows: none
};

// Two tiles of long sequences with nearly the same keys take them together: each visit of a key
// then serves 128 rows, and its way through the cache is paid half as often. Whether they do
// depends on the sequence and the pattern alone, as a row's bits must.
constexpr int64_t kPairedRows = 4096;

template <class T, class Units>
void RunTile(const Forward& params, const Problem& problem, const Work& work, bool keep_partial) {
  const int64_t query_row = params.lengths.cu_seqlens_q.data()[problem.sequence];
  const int64_t key_row = params.lengths.cu_seqlens_k.data()[problem.sequence];
  const int64_t columns = problem.tiles.sequence().k_length;
  const bool paired = work.second.count > 0;
  const int count = work.tile.count + work.second.count;
  int32_t rows[2 * kTileRows];
  problem.tiles.RowsOf(work.tile, rows);
  if (paired) problem.tiles.RowsOf(work.second, rows + kTileRows);
  Workspace memory((paired ? 2 : 1) * ColumnSet::BytesFor(columns) +
                   Workspace::BytesFor<float>(RoundUp(params.v.shape[2], kLanes)));
  ColumnSet set(memory, columns);
  TileBlock<T, Units> block(params, problem.head, query_row, key_row, rows, count);
  if (paired) {
    ColumnSet second(memory, columns);
    problem.tiles.ForColumnsOfPair(work.tile, work.second, set, second,
                                   [&](int64_t j, RowBits a, RowBits b)
                                       HWY_ATTR { block.Take(j, a, b); });
  } else {
    problem.tiles.ForColumns(work.tile, /*lines=*/false, set,
                             [&](int64_t j, RowBits kept) HWY_ATTR { block.Take(j, kept); });
  }
  block.Flush();
  const int64_t stride = block.out_stride();
  float* merged = memory.Take<float>(stride);
  for (int r = 0; r < count; ++r) {
    float max = block.state().max[r], sum = block.state().sum[r];
    const Partial& partial = problem.partial;
    if (keep_partial) {
      *partial.max(rows[r]) = max;
      *partial.sum(rows[r]) = sum;
      std::copy_n(block.out(r), stride, partial.out(rows[r]));
      continue;
    }
    const float* out = block.out(r);
    if (partial.data != nullptr && *partial.max(rows[r]) != -kInfinity) {
      std::copy_n(out, stride, merged);
      MergeRow(*partial.max(rows[r]), *partial.sum(rows[r]), partial.out(rows[r]), stride, &max,
               &sum, merged);
      out = merged;
    }
    FinishRow<T>(params, query_row + rows[r], problem.head, max, sum, out);
  }
}

// Rows that no sequence owns.
template <class T>
void ClearRows(const Forward& params, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < params.q.shape[1]; ++head) {
      std::fill_n(ElementAt<T>(params.out, row, head), params.v.shape[2], T(0.0f));
      params.softmax_lse.data<float>()[head * params.q.shape[0] + row] = -kInfinity;
    }
  }
}

template <class T, class Units>
Status RunBatch(const Forward& params, std::vector<Problem>& problems) {
  const int64_t stride = RoundUp(params.v.shape[2], kLanes);
  int64_t floats = 0;
  for (const Problem& p : problems) {
    if (p.tiles.has_slashes()) floats += Partial::SizeFor(p.tiles.sequence().q_length, stride);
  }
  Workspace memory(Workspace::BytesFor<float>(floats));
  float* next = memory.Take<float>(floats);
  std::vector<Work> slashes, others;
  for (size_t i = 0; i < problems.size(); ++i) {
    Problem& p = problems[i];
    if (p.tiles.has_slashes()) {
      const int64_t rows = p.tiles.sequence().q_length;
      p.partial = {next, rows, stride};
      next += Partial::SizeFor(rows, stride);
      std::fill_n(p.partial.data, rows, -kInfinity);
    }
    const std::vector<Tile>& tiles = p.tiles.tiles();
    for (size_t t = 0; t < tiles.size(); ++t) {
      Work work{static_cast<int32_t>(i), tiles[t], {}};
      if (p.tiles.sequence().q_length >= kPairedRows && t + 1 < tiles.size() &&
          p.tiles.ShareKeys(tiles[t], tiles[t + 1])) {
        work.second = tiles[++t];
      }
      (work.tile.stage == Stage::kSlashes ? slashes : others).push_back(work);
    }
  }
  // Causal rows cost more the later they stand, whole lines most of all: the dearest first, so that
  // no thread is left with a long one at the end.
  std::stable_sort(others.begin(), others.end(), [](const Work& a, const Work& b) {
    const bool a_line = a.tile.stage == Stage::kRowLines, b_line = b.tile.stage == Stage::kRowLines;
    return a_line != b_line ? a_line : a.tile.begin > b.tile.begin;
  });
  Status status = ParallelFor(static_cast<int64_t>(slashes.size()), [&](int64_t i, int) {
    if (Cancelled()) return;
    const Work& work = slashes[static_cast<size_t>(i)];
    RunTile<T, Units>(params, problems[static_cast<size_t>(work.problem)], work, true);
  });
  if (!status.ok()) return status;
  return ParallelFor(static_cast<int64_t>(others.size()), [&](int64_t i, int) {
    if (Cancelled()) return;
    const Work& work = others[static_cast<size_t>(i)];
    RunTile<T, Units>(params, problems[static_cast<size_t>(work.problem)], work, false);
  });
}

template <class T, class Units>
Status Attend(const Forward& params) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  if (!status.ok()) return status;
  const int64_t stride = RoundUp(params.v.shape[2], kLanes);
  const int64_t num_seqs = plan.num_seqs(), num_heads = plan.num_heads();
  ClearRows<T>(params, params.lengths.cu_seqlens_q.data()[num_seqs], params.q.shape[0]);
  std::vector<Problem> batch;
  int64_t bytes = 0;
  for (int64_t i = 0; i < num_seqs * num_heads; ++i) {
    Problem problem{i / num_heads, i % num_heads, {}, {}};
    status = problem.tiles.Open(plan, problem.sequence, problem.head);
    if (!status.ok()) return status;
    if (problem.tiles.has_slashes()) {
      bytes += 4 * Partial::SizeFor(problem.tiles.sequence().q_length, stride);
    }
    batch.push_back(std::move(problem));
    if (bytes < kPartialBytes && i + 1 < num_seqs * num_heads) continue;
    status = RunBatch<T, Units>(params, batch);
    if (!status.ok()) return status;
    batch.clear();
    bytes = 0;
  }
  return {};
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

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sparse_prefill {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }

}  // namespace varlen::sparse_prefill
#endif
