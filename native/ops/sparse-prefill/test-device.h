#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/emulated.h"
#include "ops/sparse-prefill/forward-sm80.h"
#include "ops/sparse-prefill/join-device.h"
#include "ops/sparse-prefill/tables.h"
#include "ops/sparse-prefill/test-case.h"

// What the tests of the device kernels share: plans and tensors in emulated device memory.
namespace varlen::sparse_prefill::testing {

using varlen::testing::Get;
using varlen::testing::Set;

struct DeviceRun {
  uint64_t seed = 0;
  int blocks = 3;
  bool aligned = true;  // false: as if a base pointer were not 16-byte aligned
  bool count_bank_conflicts = false;
  TableOptions tables = {};
  std::vector<simt::BankCount> conflicts = {};  // out
};

// Tables in device memory.
struct UploadedTables {
  explicit UploadedTables(const Tables& tables)
      : tiles(tables.tiles),
        segments(tables.segments),
        columns(tables.columns),
        masks(tables.masks),
        rows(tables.rows),
        slots(tables.slots),
        joins(tables.joins) {}
  DeviceTables view() const {
    return {tiles.data(), segments.data(), columns.data(), masks.data(),
            rows.data(),  slots.data(),    joins.data()};
  }
  const simt::GlobalArray<DeviceTile> tiles;
  const simt::GlobalArray<DeviceSegment> segments;
  const simt::GlobalArray<int32_t> columns;
  const simt::GlobalArray<uint32_t> masks;
  const simt::GlobalArray<int32_t> rows, slots;
  const simt::GlobalArray<DeviceJoin> joins;
};

inline Status TablesOf(const Forward& params, const TableOptions& options, Tables* tables) {
  PlanView plan;
  Status status = PlanView::Open(params.plan, &plan);
  return status.ok() ? MakeTables(plan, params.lengths, params.q.shape[0], options, tables)
                     : status;
}

template <class Kernel, class T>
void RunTiles(ForwardArguments<T> arguments, int64_t begin, int64_t end, DeviceRun& run) {
  const simt::GlobalArray<int32_t> next_tile(1);
  next_tile[0] = 0;
  arguments.next_tile = next_tile.data();
  arguments.tile_begin = begin;
  arguments.tile_end = end;
  const simt::LaunchResult result =
      simt::Launch<Kernel>(run.blocks, Kernel::kSharedBytes, arguments,
                           {.seed = run.seed,
                            .resident_blocks = run.blocks,
                            .count_bank_conflicts = run.count_bank_conflicts});
  CHECK(std::string(result.message()) == "");
  run.conflicts.insert(run.conflicts.end(), result.bank_conflicts.begin(),
                       result.bank_conflicts.end());
}

template <class T, int kHeadDim>
void EmulateForward(const Forward& params, DeviceRun& run) {
  run.tables.wide = run.tables.wide && kHasWide<kHeadDim>;
  Tables tables;
  const Status status = TablesOf(params, run.tables, &tables);
  CAPTURE(status.message);
  REQUIRE(status.ok());
  const UploadedTables device(tables);
  const auto q = varlen::testing::Upload<T>(params.q), k = varlen::testing::Upload<T>(params.k);
  const auto v = varlen::testing::Upload<T>(params.v);
  const auto bias = varlen::testing::Upload<float>(params.key_bias);
  const simt::GlobalArray<T> out(params.out.size());
  const simt::GlobalArray<float> lse(params.softmax_lse.size());
  int64_t slots = 0;
  for (const TableBatch& batch : tables.batches) slots = std::max(slots, batch.slots);
  const int64_t value_dim = params.v.shape[2];
  const simt::GlobalArray<float> slot_out(slots * value_dim), slot_lse(slots);
  const ForwardArguments<T> arguments{
      .q = q.data(),
      .k = k.data(),
      .v = v.data(),
      .out = out.data(),
      .softmax_lse = lse.data(),
      .q_row = params.q.strides[0],
      .q_head = params.q.strides[1],
      .k_row = params.k.strides[0],
      .k_head = params.k.strides[1],
      .v_row = params.v.strides[0],
      .v_head = params.v.strides[1],
      .out_row = params.out.strides[0],
      .out_head = params.out.strides[1],
      .total_q = params.q.shape[0],
      .total_k = params.k.shape[0],
      .key_bias = varlen::testing::Given(bias),
      .tables = device.view(),
      .tile_begin = 0,
      .tile_end = 0,
      .next_tile = nullptr,
      .slot_out = slot_out.data(),
      .slot_lse = slot_lse.data(),
      .group = static_cast<int32_t>(params.q.shape[1] / params.k.shape[1]),
      .head_dim = static_cast<int32_t>(params.q.shape[2]),
      .value_dim = static_cast<int32_t>(value_dim),
      .softmax_scale = params.lengths.softmax_scale,
      .softcap = params.lengths.softcap,
      .vector_loads = run.aligned,
      .vector_stores = run.aligned};
  for (const TableBatch& b : tables.batches) {
    if (b.narrow_begin < b.narrow_end) {
      RunTiles<ForwardSm80<T, kHeadDim, false>>(arguments, b.narrow_begin, b.narrow_end, run);
    }
    if constexpr (kHasWide<kHeadDim>) {
      if (b.wide_begin < b.wide_end) {
        RunTiles<ForwardSm80<T, kHeadDim, true>>(arguments, b.wide_begin, b.wide_end, run);
      }
    }
    if (b.join_begin == b.join_end) continue;
    varlen::testing::Emulate<JoinSlots<T>>(
        2,
        {arguments.tables.joins + b.join_begin, b.join_end - b.join_begin, slot_out.data(),
         slot_lse.data(), out.data(), arguments.out_row, arguments.out_head, lse.data(),
         arguments.total_q, arguments.value_dim},
        run.seed);
  }
  std::copy(out.begin(), out.end(), params.out.data<T>());
  std::copy(lse.begin(), lse.end(), params.softmax_lse.data<float>());
}

// Fills out and softmax_lse of `params` by the kernels.
inline void RunEmulated(const Forward& params, DeviceRun run = {}, DeviceRun* after = nullptr) {
  const int64_t d = std::max(params.q.shape[2], params.v.shape[2]);
  const int64_t padded = d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : d <= 192 ? 192 : 256;
  const Status status = DispatchDType<bfloat16, half>(params.q.dtype, "q", [&]<class T>() {
    return DispatchInt<64, 96, 128, 192, 256>(padded, "headDim", [&]<int kHeadDim>() -> Status {
      EmulateForward<T, kHeadDim>(params, run);
      return {};
    });
  });
  REQUIRE(status.ok());
  if (after != nullptr) *after = run;
}

// --- the set ---

// What the mask op says of one head.
inline std::vector<uint8_t> MaskOf(const Forward& params, int64_t sequence, int64_t head) {
  PlanView plan;
  REQUIRE(PlanView::Open(params.plan, &plan).ok());
  const SequenceInfo& s = plan.sequence(sequence);
  Mask mask;
  mask.plan = params.plan;
  mask.sequence = sequence;
  mask.head = head;
  mask.mask = Tensor::Empty(DType::kU8, {s.q_length, s.k_length});
  REQUIRE(Run(mask).ok());
  return {mask.mask.data<uint8_t>(), mask.mask.data<uint8_t>() + mask.mask.size()};
}

// How often the kernel counts every pair of a head: with all scores 0 a row's weights are 1 / n for
// its n keys, and values that are 1 for one key each tell the keys apart, value_dim at a time.
inline std::vector<std::vector<uint8_t>> SetsOf(Forward params, const DeviceRun& run) {
  const int64_t heads = params.q.shape[1], value_dim = params.v.shape[2];
  for (int64_t i = 0; i < params.q.size(); ++i) Set(params.q, i, 0);
  const auto seqs = static_cast<int64_t>(params.lengths.cu_seqlens_q.size()) - 1;
  const int32_t *cu_q = params.lengths.cu_seqlens_q.data(),
                *cu_k = params.lengths.cu_seqlens_k.data();
  std::vector<std::vector<uint8_t>> sets;
  int64_t longest = 0;
  for (int64_t b = 0; b < seqs; ++b) {
    const int64_t rows = cu_q[b + 1] - cu_q[b], keys = cu_k[b + 1] - cu_k[b];
    longest = std::max(longest, keys);
    for (int64_t h = 0; h < heads; ++h) sets.emplace_back(static_cast<size_t>(rows * keys), 0);
  }
  for (int64_t first = 0; first < longest; first += value_dim) {
    for (int64_t b = 0; b < seqs; ++b) {
      for (int64_t j = cu_k[b]; j < cu_k[b + 1]; ++j) {
        for (int64_t i = 0; i < params.v.shape[1] * value_dim; ++i) {
          const bool own = j - cu_k[b] - first == i % value_dim;
          Set(params.v, j * params.v.shape[1] * value_dim + i, own ? 1 : 0);
        }
      }
    }
    RunEmulated(params, run);
    for (int64_t b = 0; b < seqs; ++b) {
      const int64_t keys = cu_k[b + 1] - cu_k[b];
      for (int64_t h = 0; h < heads; ++h) {
        auto& set = sets[static_cast<size_t>(b * heads + h)];
        for (int64_t row = cu_q[b]; row < cu_q[b + 1]; ++row) {
          const double count =
              std::exp(double{params.softmax_lse.data<float>()[h * params.q.shape[0] + row]});
          for (int64_t d = 0; d < value_dim && first + d < keys; ++d) {
            const double times = Get(params.out, (row * heads + h) * value_dim + d) * count;
            set[static_cast<size_t>((row - cu_q[b]) * keys + first + d)] =
                static_cast<uint8_t>(std::lround(times));
          }
        }
      }
    }
  }
  return sets;
}

// --- accuracy ---

// As a few lines of tensor code compute it (varlen-attention/plain.h): every intermediate is stored
// in T, products accumulate in float32. Its error is the yardstick.
template <class T>
double PlainError(const Forward& params, const Tensor& exact) {
  const auto round = [](float x) { return static_cast<float>(T(x)); };
  const int64_t heads = params.q.shape[1], kv_heads = params.k.shape[1];
  const int64_t dim = params.q.shape[2], value_dim = params.v.shape[2];
  double worst = 0;
  for (int64_t b = 0; b + 1 < params.lengths.cu_seqlens_q.size(); ++b) {
    const int64_t q0 = params.lengths.cu_seqlens_q.data()[b];
    const int64_t k0 = params.lengths.cu_seqlens_k.data()[b];
    const int64_t rows = params.lengths.cu_seqlens_q.data()[b + 1] - q0;
    const int64_t keys = params.lengths.cu_seqlens_k.data()[b + 1] - k0;
    for (int64_t h = 0; h < heads; ++h) {
      const std::vector<uint8_t> mask = MaskOf(params, b, h);
      const int64_t kv = h / (heads / kv_heads);
      std::vector<float> p(static_cast<size_t>(keys)), out(static_cast<size_t>(value_dim));
      for (int64_t r = 0; r < rows; ++r) {
        float max = -std::numeric_limits<float>::infinity(), sum = 0;
        for (int64_t j = 0; j < keys; ++j) {
          if (mask[static_cast<size_t>(r * keys + j)] == 0) continue;
          float dot = 0;
          for (int64_t d = 0; d < dim; ++d) {
            const auto q = static_cast<float>(Get(params.q, ((q0 + r) * heads + h) * dim + d));
            dot += round(q * params.lengths.softmax_scale) *
                   static_cast<float>(Get(params.k, ((k0 + j) * kv_heads + kv) * dim + d));
          }
          float s = round(dot);
          if (params.lengths.softcap > 0) {
            s = round(round(std::tanh(round(s / params.lengths.softcap))) * params.lengths.softcap);
          }
          if (params.key_bias) {
            s = round(s + params.key_bias.data<float>()[h * params.k.shape[0] + k0 + j]);
          }
          p[static_cast<size_t>(j)] = s;
          max = std::max(max, s);
        }
        std::fill(out.begin(), out.end(), 0.0f);
        for (int64_t j = 0; j < keys; ++j) {
          float& x = p[static_cast<size_t>(j)];
          x = mask[static_cast<size_t>(r * keys + j)] == 0 ? 0 : std::exp(x - max);
          sum += x;
        }
        for (int64_t j = 0; j < keys; ++j) {
          if (sum == 0) break;
          const float weight = round(p[static_cast<size_t>(j)] / sum);
          for (int64_t d = 0; d < value_dim; ++d) {
            out[static_cast<size_t>(d)] +=
                weight *
                static_cast<float>(Get(params.v, ((k0 + j) * kv_heads + kv) * value_dim + d));
          }
        }
        for (int64_t d = 0; d < value_dim; ++d) {
          const double want = Get(exact, ((q0 + r) * heads + h) * value_dim + d);
          worst = std::max(worst, std::abs(round(out[static_cast<size_t>(d)]) - want));
        }
      }
    }
  }
  return worst;
}

struct Exact {
  Tensor out, softmax_lse;
};
inline Exact ReferenceOf(Forward params) {
  params.out =
      Tensor::Empty(DType::kF64, {params.out.shape[0], params.out.shape[1], params.out.shape[2]});
  params.softmax_lse =
      Tensor::Empty(DType::kF64, {params.softmax_lse.shape[0], params.softmax_lse.shape[1]});
  REQUIRE(RunReference(params).ok());
  return {params.out, params.softmax_lse};
}

// The kernel's error is at most that of plain computation in the same dtype.
inline void CheckAccuracy(const Forward& params) {
  const Exact exact = ReferenceOf(params);
  double worst = 0, worst_lse = 0;
  for (int64_t i = 0; i < exact.out.size(); ++i) {
    const double error = std::abs(Get(params.out, i) - Get(exact.out, i));
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  for (int64_t i = 0; i < exact.softmax_lse.size(); ++i) {
    const double want = Get(exact.softmax_lse, i), got = Get(params.softmax_lse, i);
    if (want == got) continue;  // -inf too
    const double error = std::abs(got - want);
    worst_lse = std::isnan(error) ? INFINITY : std::max(worst_lse, error);
  }
  const double plain = params.q.dtype == DType::kBF16 ? PlainError<bfloat16>(params, exact.out)
                                                      : PlainError<half>(params, exact.out);
  CAPTURE(plain);
  CHECK(worst <= plain);
  CHECK(worst_lse <= 2e-5);
}

}  // namespace varlen::sparse_prefill::testing
