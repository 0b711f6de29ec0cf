#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/simt/simt.h"
#include "doctest/doctest.h"
#include "ops/varlen-attention/prepare.h"
#include "ops/varlen-attention/test-case.h"

// What the tests of the device kernels share: a case in emulated device memory.
namespace varlen::varlen_attention::testing {

inline constexpr uint64_t kSeeds = 8;

// Ragged sequences, two of them with rows or keys of length 0, under one option.
inline Case OptionCase(const Variant& variant, DType dtype, int64_t head_dim) {
  Case c = MakeCase({.dtype = dtype,
                     .num_heads = 2,
                     .num_kv_heads = 1,
                     .head_dim = head_dim,
                     .slots_q = {90, 140, 33, 50},
                     .slots_k = {150, 90, 170, 70},
                     .used_q = {81, 140, 0, 50},
                     .used_k = {149, 0, 160, 66}});
  variant.apply(c);
  return c;
}

// Prompts shared by trees of answers, with rows and keys of nobody after them.
inline Case TreeCase(DType dtype, uint64_t seed) {
  Case c = MakeCase({.dtype = dtype,
                     .num_heads = 2,
                     .num_kv_heads = 2,
                     .head_dim = seed == 1 ? 64 : 40,
                     .slots_q = {7, 200, 0, 1, 128},
                     .tail_q = 4,
                     .tail_k = 4,
                     .seed = seed});
  AddTrees(c, seed * 100);
  return c;
}

// Lengths around the borders of tiles, rows or keys of length 0 among them.
inline Case RaggedCase(DType dtype) {
  return MakeCase({.dtype = dtype,
                   .num_heads = 4,
                   .num_kv_heads = 2,
                   .head_dim = 64,
                   .slots_q = {0, 1, 63, 64, 65, 0, 129, 3},
                   .slots_k = {1, 65, 64, 0, 63, 0, 130, 1},
                   .tail_q = 3,
                   .tail_k = 2});
}

// Every head dimension in every dtype.
inline std::vector<Case> HeadDimCases(std::span<const DType> dtypes,
                                      std::initializer_list<int64_t> head_dims) {
  std::vector<Case> cases;
  uint64_t seed = 100;
  for (DType dtype : dtypes) {
    for (int64_t head_dim : head_dims) {
      Case& c = cases.emplace_back(MakeCase({.dtype = dtype,
                                             .num_heads = 3,
                                             .num_kv_heads = 1,
                                             .head_dim = head_dim,
                                             .slots_q = {50, 0, 7},
                                             .slots_k = {70, 5, 33},
                                             .tail_q = 2,
                                             .seed = ++seed}));
      c.options.causal = head_dim % 3 != 0;
    }
  }
  return cases;
}

// The small length pairs of flash-attention's own test grid; dtypes, key/value heads, head
// dimensions and masks take turns.
inline std::vector<Case> GridCases(DType first, DType last, const std::vector<int64_t>& head_dims) {
  const int32_t pairs[][2] = {{1, 1},     {1, 3},    {2, 1},    {3, 113},  {64, 128}, {128, 128},
                              {113, 203}, {128, 97}, {108, 80}, {160, 60}, {51, 1},   {70, 190}};
  const int64_t kv_heads[] = {6, 2, 1};
  std::vector<Case> cases;
  int turn = 0;
  for (const auto& [longest_q, longest_k] : pairs) {
    Case& c = cases.emplace_back(
        MakeCase({.dtype = turn % 2 == 0 ? first : last,
                  .num_heads = 6,
                  .num_kv_heads = kv_heads[turn % 3],
                  .head_dim = head_dims[static_cast<size_t>(turn) % head_dims.size()],
                  .slots_q = {longest_q, 1 + longest_q / 3},
                  .slots_k = {longest_k, turn % 5 == 4 ? 0 : 1 + longest_k / 2},
                  .tail_q = 5,
                  .tail_k = 7,
                  .seed = 500 + static_cast<uint64_t>(turn)}));
    c.with_d_lse = turn % 2 == 0;
    c.options.causal = turn % 4 == 1 || turn % 4 == 3;
    if (turn % 4 >= 2) c.options.window_left = 20 + turn;
    if (turn % 4 == 2) c.options.window_right = 7;
    if (turn % 6 == 5) c.options.softcap = 15;
    if (turn % 6 == 4) c.options.softmax_scale = 0.1f;
    ++turn;
  }
  return cases;
}

// Sequences that are also run alone. MakeCase fills every row outside a sequence with NaN, so this
// tests their isolation too.
inline Case PackedCase(DType dtype) {
  Case c = MakeCase({.dtype = dtype,
                     .num_heads = 6,
                     .num_kv_heads = 2,
                     .head_dim = 64,
                     .slots_q = {100, 1, 64, 37},
                     .tail_q = 9,
                     .tail_k = 9});
  c.options.causal = true;
  return c;
}

// Whole tiles: every access is one that all lanes make.
inline Case WholeTilesCase(DType dtype, int64_t head_dim) {
  return MakeCase(
      {.dtype = dtype, .num_heads = 1, .num_kv_heads = 1, .head_dim = head_dim, .slots_q = {128}});
}

inline Case UnalignedCase(DType dtype, int64_t head_dim) {
  return MakeCase({.dtype = dtype,
                   .num_heads = 2,
                   .num_kv_heads = 1,
                   .head_dim = head_dim,
                   .slots_q = {70, 9},
                   .tail_q = 1});
}

// How a tile loop runs: which seed, how many persistent blocks, side by side or not.
struct DeviceRun {
  uint64_t seed = 0;
  int blocks = 3;
  bool vector_access = true;  // false: as if a base pointer were not 16-byte aligned
  bool count_bank_conflicts = false;
  int32_t splits = 1;        // of the keys: at most,
  bool same_splits = false;  // or exactly
};

// A copy of a tensor's whole storage in emulated device memory; rows stay where they are.
inline simt::GlobalArray<unsigned char> Upload(const Tensor& tensor) {
  const auto* bytes = tensor.data<unsigned char>();
  return {bytes, tensor.size() * SizeOf(tensor.dtype)};
}
template <class T>
simt::GlobalArray<T> Upload(const HostOrTensor<T>& argument) {
  return {argument ? argument.data() : nullptr, argument ? argument.size() : 0};
}
template <class T>
void Download(const simt::GlobalArray<T>& from, const Tensor& to) {
  std::memcpy(to.data<unsigned char>(), from.data(), sizeof(T) * static_cast<size_t>(from.size()));
}

// A copy that lies as `like` does.
template <class T>
DeviceMatrix<T> MatrixAt(const simt::GlobalArray<unsigned char>& copy, const Tensor& like) {
  return {reinterpret_cast<T*>(copy.data()), like.strides[0], like.strides[1]};
}

// The options of a case as kernels read them.
struct DeviceOptions {
  explicit DeviceOptions(const Case& c)
      : c(c),
        cu_q(Upload(c.options.cu_seqlens_q)),
        cu_k(Upload(c.options.cu_seqlens_k ? c.options.cu_seqlens_k : c.options.cu_seqlens_q)),
        used_q(Upload(c.options.seq_used_q)),
        used_k(Upload(c.options.seq_used_k)),
        key_end(Upload(c.options.key_end)),
        slopes(Upload(c.options.alibi_slopes)),
        order(NumSeqs(c) + 1),
        next_tile(1),
        tile_start(NumSeqs(c) + 2) {}

  DeviceSequences sequences() const {
    return {.cu_q = cu_q.data(),
            .cu_k = cu_k.data(),
            .used_q = c.options.seq_used_q ? used_q.data() : nullptr,
            .used_k = c.options.seq_used_k ? used_k.data() : nullptr,
            .num_seqs = static_cast<int32_t>(NumSeqs(c)),
            .total_q = c.q.shape[0],
            .total_k = c.k.shape[0]};
  }
  DeviceMask mask() const {
    const auto bound = [](int64_t side) {
      return static_cast<int32_t>(side < 0 ? kUnbounded : std::min<int64_t>(side, kUnbounded));
    };
    return {.left = bound(c.options.window_left),
            .right = c.options.causal ? 0 : bound(c.options.window_right),
            .key_end = c.options.key_end ? key_end.data() : nullptr};
  }
  DeviceSchedule schedule() const { return {order.data(), tile_start.data(), next_tile.data()}; }
  const float* alibi_slopes() const { return c.options.alibi_slopes ? slopes.data() : nullptr; }
  int32_t alibi_sequence_stride() const {
    const bool per_sequence = c.options.alibi_slopes && slopes.size() != c.q.shape[1];
    return per_sequence ? static_cast<int32_t>(c.q.shape[1]) : 0;
  }

  const Case& c;
  simt::GlobalArray<int32_t> cu_q, cu_k, used_q, used_k, key_end;
  simt::GlobalArray<float> slopes;
  simt::GlobalArray<int32_t> order, next_tile;
  simt::GlobalArray<int64_t> tile_start;
};

// The prepare kernel and then the tiles of one pass.
template <class Kernel>
simt::LaunchResult RunTiles(const typename Kernel::Params& arguments, const DeviceRun& run) {
  const simt::LaunchResult prepared = simt::Launch<Prepare>(
      1, Prepare::kSharedBytes,
      {arguments.sequences, arguments.mask, arguments.schedule, Kernel::TilingOf(arguments)},
      {.seed = run.seed});
  if (!prepared.ok()) return prepared;
  return simt::Launch<Kernel>(run.blocks, Kernel::kSharedBytes, arguments,
                              {.seed = run.seed,
                               .resident_blocks = run.blocks,
                               .count_bank_conflicts = run.count_bank_conflicts});
}

// Every access took as few wavefronts as its bytes need.
inline void CheckWavefronts(int64_t head_dim, const simt::LaunchResult& launch) {
  for (const simt::BankCount& count : launch.bank_conflicts) {
    INFO("headDim " << head_dim << ", " << simt::Describe(count.site));
    CHECK(count.wavefronts == count.ideal);
  }
}

// The element types that a family of kernels is for.
template <class... Ts>
struct Elements {
  static constexpr DType kDtypes[] = {DTypeOf<Ts>::value...};
  static constexpr DType kFirst = kDtypes[0], kLast = kDtypes[sizeof...(Ts) - 1];

  // fn.template operator()<T, kHeadDim>() with the case's dtype and its padded head dimension.
  template <class Fn>
  static Status Dispatch(const Case& c, const Fn& fn) {
    const int64_t d = c.q.shape[2];
    const int64_t padded = d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : d <= 192 ? 192 : 256;
    return DispatchDType<Ts...>(c.q.dtype, "q", [&]<class T>() -> Status {
      return DispatchInt<64, 96, 128, 192, 256>(padded, "headDim", [&]<int kHeadDim>() -> Status {
        fn.template operator()<T, kHeadDim>();
        return {};
      });
    });
  }
};

}  // namespace varlen::varlen_attention::testing
