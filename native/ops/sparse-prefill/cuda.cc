#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "core/companion.h"
#include "core/cuda/launch.h"
#include "core/dispatch.h"
#include "ops/sparse-prefill/kernels.h"
#include "ops/sparse-prefill/sparse-prefill.h"
#include "ops/sparse-prefill/tables.h"

// The launches on a GPU. The words of a plan are on the host; the first run of a stream makes the
// tables of them, on the stream's thread, and keeps them on the GPU with the plan.
namespace varlen::sparse_prefill {
namespace {

Status NoKernel(const char* argument, const std::string& feature) {
  return {Code::kUnsupported, argument, "has no CUDA kernel for " + feature, {}};
}

bool Aligned16(const Tensor& tensor) {
  const int64_t element = SizeOf(tensor.dtype);
  return reinterpret_cast<uintptr_t>(tensor.address()) % 16 == 0 &&
         tensor.strides[0] * element % 16 == 0 && tensor.strides[1] * element % 16 == 0;
}

// --- tables ---

// In the memory of one stream, and what they were made from.
struct KeptTables {
  const void* stream;
  std::vector<int32_t> words;
  bool wide;
  int64_t total_q;
  DeviceTables tables;
  std::vector<TableBatch> batches;
  std::vector<StorageRef> memory;

  bool Fits(const cuda::Launch& launch, const Forward& p, bool has_wide) const {
    return stream == launch.memory() && wide == has_wide && total_q == p.q.shape[0] &&
           static_cast<int64_t>(words.size()) == p.plan.size() &&
           std::memcmp(words.data(), p.plan.address(), words.size() * sizeof(int32_t)) == 0;
  }
};

struct TablesOfPlan {
  std::mutex mutex;
  std::vector<std::shared_ptr<const KeptTables>> of_streams;
};

Status MakeKept(cuda::Launch& launch, const Forward& p, bool wide,
                std::shared_ptr<const KeptTables>* made) {
  PlanView plan;
  Status status = PlanView::Open(p.plan, &plan);
  Tables tables;
  if (status.ok()) {
    status = MakeTables(plan, p.lengths, p.q.shape[0], {.wide = wide}, &tables);
  }
  if (!status.ok()) return status;
  auto kept = std::make_shared<KeptTables>();
  const auto upload = [&](const auto& array) {
    return launch.UploadAndKeep(array.data(), static_cast<int64_t>(array.size()), &kept->memory);
  };
  kept->stream = launch.memory();
  kept->words.assign(p.plan.data<int32_t>(), p.plan.data<int32_t>() + p.plan.size());
  kept->wide = wide;
  kept->total_q = p.q.shape[0];
  kept->tables = {upload(tables.tiles), upload(tables.segments), upload(tables.columns),
                  upload(tables.masks), upload(tables.rows),     upload(tables.slots),
                  upload(tables.joins)};
  kept->batches = std::move(tables.batches);
  *made = std::move(kept);
  return launch.status();
}

Status TablesFor(cuda::Launch& launch, const Forward& p, bool wide,
                 std::shared_ptr<const KeptTables>* tables) {
  auto of_plan = std::static_pointer_cast<TablesOfPlan>(
      CompanionOf(*p.plan.storage.get(),
                  []() -> std::shared_ptr<void> { return std::make_shared<TablesOfPlan>(); }));
  const std::lock_guard<std::mutex> lock(of_plan->mutex);
  auto& all = of_plan->of_streams;
  for (const auto& kept : all) {
    if (kept->Fits(launch, p, wide)) *tables = kept;
  }
  if (*tables != nullptr) return {};
  if (Status status = MakeKept(launch, p, wide, tables); !status.ok()) return status;
  // What the stream kept of other words goes, in the stream's own order.
  std::erase_if(all, [&](const auto& kept) { return kept->stream == launch.memory(); });
  all.push_back(*tables);
  return {};
}

// --- the forward pass ---

template <class T>
ForwardArguments<T> ArgumentsOf(cuda::Launch& launch, const Forward& p, const KeptTables& kept) {
  int64_t slots = 0;
  for (const TableBatch& batch : kept.batches) slots = std::max(slots, batch.slots);
  const int64_t value_dim = p.v.shape[2];
  return {.q = p.q.data<T>(),
          .k = p.k.data<T>(),
          .v = p.v.data<T>(),
          .out = p.out.data<T>(),
          .softmax_lse = p.softmax_lse.data<float>(),
          .q_row = p.q.strides[0],
          .q_head = p.q.strides[1],
          .k_row = p.k.strides[0],
          .k_head = p.k.strides[1],
          .v_row = p.v.strides[0],
          .v_head = p.v.strides[1],
          .out_row = p.out.strides[0],
          .out_head = p.out.strides[1],
          .total_q = p.q.shape[0],
          .total_k = p.k.shape[0],
          .key_bias = cuda::Launch::DataOf<float>(p.key_bias),
          .tables = kept.tables,
          .tile_begin = 0,
          .tile_end = 0,
          .next_tile = nullptr,
          .slot_out = launch.Scratch<float>(slots * value_dim),
          .slot_lse = launch.Scratch<float>(slots),
          .group = static_cast<int32_t>(p.q.shape[1] / p.k.shape[1]),
          .head_dim = static_cast<int32_t>(p.q.shape[2]),
          .value_dim = static_cast<int32_t>(value_dim),
          .softmax_scale = p.lengths.softmax_scale,
          .softcap = p.lengths.softcap,
          .vector_loads = Aligned16(p.q) && Aligned16(p.k) && Aligned16(p.v),
          .vector_stores = Aligned16(p.out)};
}

template <class Kernel, class T>
void RunTiles(cuda::Launch& launch, ForwardArguments<T> arguments, int64_t begin, int64_t end,
              int32_t* next_tile) {
  if (begin == end) return;
  arguments.tile_begin = begin;
  arguments.tile_end = end;
  arguments.next_tile = next_tile;
  launch.Run<Kernel>(end - begin, arguments);
}

template <class T, int kHeadDim>
Status Launch(const Forward& p) {
  cuda::Launch& launch = cuda::Launch::Current();
  std::shared_ptr<const KeptTables> kept;
  if (Status status = TablesFor(launch, p, kHasWide<kHeadDim>, &kept); !status.ok()) return status;
  const ForwardArguments<T> arguments = ArgumentsOf<T>(launch, p, *kept);
  const auto counters = 2 * static_cast<int64_t>(kept->batches.size());
  auto* next_tile = launch.Scratch<int32_t>(counters);
  launch.Fill(next_tile, 0, counters * static_cast<int64_t>(sizeof(int32_t)));
  for (const TableBatch& b : kept->batches) {
    if constexpr (kHasWide<kHeadDim>) {
      RunTiles<ForwardSm80<T, kHeadDim, true>>(launch, arguments, b.wide_begin, b.wide_end,
                                               next_tile++);
    }
    RunTiles<ForwardSm80<T, kHeadDim, false>>(launch, arguments, b.narrow_begin, b.narrow_end,
                                              next_tile++);
    if (b.join_begin == b.join_end) continue;
    using Join = JoinSlots<T>;
    const int64_t joins = b.join_end - b.join_begin;
    launch.Run<Join>((joins + Join::kRowsPerBlock - 1) / Join::kRowsPerBlock,
                     {arguments.tables.joins + b.join_begin, joins, arguments.slot_out,
                      arguments.slot_lse, arguments.out, arguments.out_row, arguments.out_head,
                      arguments.softmax_lse, arguments.total_q, arguments.value_dim});
  }
  return launch.status();
}

template <class T>
typename MergeStates<T>::Source SourceOf(const Tensor& out, const Tensor& lse) {
  return {out.data<T>(), out.strides[0], out.strides[1], lse.data<float>()};
}

}  // namespace

Status RunCuda(const Forward& p) {
  if (p.q.dtype == DType::kF32) return NoKernel("q", "float32; use bfloat16 or float16");
  for (const auto& [name, tensor] : {std::pair{"q", &p.q}, std::pair{"v", &p.v}}) {
    if (tensor->shape[2] > 256) return NoKernel(name, "head dimensions above 256");
  }
  if (p.q.size() == 0) return {};
  const int64_t d = std::max(p.q.shape[2], p.v.shape[2]);
  const int64_t padded = d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : d <= 192 ? 192 : 256;
  return DispatchDType<bfloat16, half>(p.q.dtype, "q", [&]<class T>() {
    return DispatchInt<64, 96, 128, 192, 256>(
        padded, "headDim", [&]<int kHeadDim>() { return Launch<T, kHeadDim>(p); });
  });
}

Status RunCuda(const Merge& p) {
  cuda::Launch& launch = cuda::Launch::Current();
  if (p.out.size() == 0) return launch.status();
  return DispatchDType<float, bfloat16, half>(p.out.dtype, "out1", [&]<class T>() {
    using Kernel = MergeStates<T>;
    const int64_t rows = p.out.shape[0], heads = p.out.shape[1];
    launch.Run<Kernel>((rows * heads + Kernel::kRowsPerBlock - 1) / Kernel::kRowsPerBlock,
                       {SourceOf<T>(p.out1, p.lse1), SourceOf<T>(p.out2, p.lse2), p.out.data<T>(),
                        p.out.strides[0], p.out.strides[1], p.softmax_lse.data<float>(), rows,
                        static_cast<int32_t>(heads), static_cast<int32_t>(p.out.shape[2])});
    return launch.status();
  });
}

// The addon refuses these before they are enqueued.
Status RunCuda(const Backward&) { return NoKernel("q", "the backward pass"); }
Status RunCuda(const Rebalance&) { return NoKernel("q", "rebalancing"); }
Status RunCuda(const Plan&) { return NoKernel("q", "planning, which is the host's"); }

}  // namespace varlen::sparse_prefill
