// Forward copies rows; backward sorts the tokens by id (a counting sort keeps their order) and
// gives each piece of the vocabulary to one thread, so that no two add to the same row.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/embedding/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/embedding/embedding.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::embedding {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kPieceElements = 32768;

int64_t RowsPerPiece(int64_t hidden) { return std::max<int64_t>(1, kPieceElements / (hidden + 1)); }

Status RunForward(const Forward& params) {
  const int64_t hidden = params.weight.shape[1];
  const auto bytes = static_cast<size_t>(hidden * SizeOf(params.weight.dtype));
  const auto start = [](const Tensor& tensor) {
    return tensor.storage->data() + tensor.offset * SizeOf(tensor.dtype);
  };
  const std::byte* table = start(params.weight);
  std::byte* out = start(params.out);
  const int32_t* ids = params.ids.data();
  return ParallelForRange(params.ids.size(), RowsPerPiece(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::memcpy(out + static_cast<size_t>(t) * bytes, table + static_cast<size_t>(ids[t]) * bytes,
                  bytes);
    }
  });
}

template <class T>
Status AddRows(const Backward& params) {
  const int64_t vocab_size = params.weight.shape[0], hidden = params.weight.shape[1];
  const int64_t tokens = params.ids.size();
  const int32_t* ids = params.ids.data();
  // order[first[v] .. first[v + 1]) are the tokens with id v, in order.
  Workspace memory(Workspace::BytesFor<int64_t>(vocab_size + 2) +
                   Workspace::BytesFor<int32_t>(tokens));
  int64_t* first = memory.Take<int64_t>(vocab_size + 2);
  int32_t* order = memory.Take<int32_t>(tokens);
  std::fill_n(first, vocab_size + 2, int64_t{0});
  for (int64_t t = 0; t < tokens; ++t) ++first[ids[t] + 2];
  for (int64_t v = 0; v < vocab_size; ++v) first[v + 2] += first[v + 1];
  for (int64_t t = 0; t < tokens; ++t) order[first[ids[t] + 1]++] = static_cast<int32_t>(t);

  const T* d_out = params.d_out.data<T>();
  float* d_weight = params.d_weight.data<float>();
  // Words are used unevenly: small pieces let the threads even that out.
  const int64_t piece = std::max<int64_t>(1, std::min(RowsPerPiece(hidden), vocab_size / 64));
  return ParallelForRange(vocab_size, piece, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t v = begin; v < end; ++v) {
      float* row = d_weight + v * hidden;
      std::fill_n(row, hidden, 0.0f);
      for (int64_t i = first[v]; i < first[v + 1]; ++i) {
        AddRow(d_out + order[i] * hidden, hidden, row);
      }
    }
  });
}

Status RunBackward(const Backward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.d_out.dtype, "dOut", [&]<class Scalar>() { return AddRows<Scalar>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::embedding
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::embedding {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::embedding
#endif
