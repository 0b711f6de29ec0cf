#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/varlen-attention/backward-statistics.h"
#include "ops/varlen-attention/backward-tile.h"
#include "ops/varlen-attention/test-device.h"

// What the tests of the backward kernels share: runs in the host emulator, and the cases that every
// architecture's kernels must get right. Family names the kernel of a pass and makes its
// parameters:
//
//   struct Sm80 : Elements<bfloat16, half> {
//     template <class T, int kHeadDim, Gradient kGradient> using Kernel = BackwardSm80<...>;
//     template <class Kernel, class T>
//     static auto ParamsOf(const BackwardArguments<T>& arguments) -> Kernel::Params;
//   };
namespace varlen::varlen_attention::testing {

inline int backward_runs = 0;

// Fills the gradients of `results`, whose out and softmax_lse are there.
template <class Family, class T, int kHeadDim>
simt::LaunchResult EmulateBackward(const Case& c, const DeviceRun& run, const Results& results) {
  const auto q = Upload(c.q), k = Upload(c.k), v = Upload(c.v), d_out = Upload(c.d_out);
  const auto out = Upload(results.out), lse = Upload(results.softmax_lse), d_lse = Upload(c.d_lse);
  const int64_t element = SizeOf(c.q.dtype);
  const simt::GlobalArray<unsigned char> dq(c.q.size() * element);
  const simt::GlobalArray<unsigned char> dk(c.k.size() * element), dv(c.k.size() * element);
  const simt::GlobalArray<RowStatistics> statistics(c.q.shape[0] * c.q.shape[1]);
  const DeviceOptions device(c);
  const bool aligned = run.vector_access && kHeadDim > 0 && c.q.shape[2] % 8 == 0;
  const BackwardArguments<T> arguments{.q = MatrixAt<const T>(q, c.q),
                                       .k = MatrixAt<const T>(k, c.k),
                                       .v = MatrixAt<const T>(v, c.v),
                                       .d_out = MatrixAt<const T>(d_out, c.d_out),
                                       .dq = MatrixAt<T>(dq, c.q),
                                       .dk = MatrixAt<T>(dk, c.k),
                                       .dv = MatrixAt<T>(dv, c.v),
                                       .statistics = statistics.data(),
                                       .sequences = device.sequences(),
                                       .mask = device.mask(),
                                       .schedule = device.schedule(),
                                       .alibi_slopes = device.alibi_slopes(),
                                       .alibi_sequence_stride = device.alibi_sequence_stride(),
                                       .num_heads = static_cast<int32_t>(c.q.shape[1]),
                                       .num_kv_heads = static_cast<int32_t>(c.k.shape[1]),
                                       .head_dim = static_cast<int32_t>(c.q.shape[2]),
                                       .softmax_scale = c.options.softmax_scale,
                                       .softcap = c.options.softcap,
                                       .vector_loads = aligned,
                                       .vector_stores = aligned};

  simt::LaunchResult result = simt::Launch<BackwardStatistics<T>>(
      run.blocks, BackwardStatistics<T>::kSharedBytes,
      {MatrixAt<const T>(out, c.q), arguments.d_out, reinterpret_cast<const float*>(lse.data()),
       c.with_d_lse ? reinterpret_cast<const float*>(d_lse.data()) : nullptr, statistics.data(),
       c.q.shape[0], arguments.num_heads, arguments.num_kv_heads, arguments.head_dim},
      {.seed = run.seed});
  const auto pass = [&]<Gradient kGradient>() {
    if (!result.ok()) return;
    const std::vector<simt::BankCount> before = std::move(result.bank_conflicts);
    using Kernel = typename Family::template Kernel<T, kHeadDim, kGradient>;
    result = RunTiles<Kernel>(Family::template ParamsOf<Kernel>(arguments), run);
    result.bank_conflicts.insert(result.bank_conflicts.end(), before.begin(), before.end());
    ++backward_runs;
  };
  pass.template operator()<Gradient::kQuery>();
  if constexpr (kHeadDim <= 128) {
    pass.template operator()<Gradient::kKeyAndValue>();
  } else {
    pass.template operator()<Gradient::kKey>();
    pass.template operator()<Gradient::kValue>();
  }
  Download(dq, results.dq);
  Download(dk, results.dk);
  Download(dv, results.dv);
  return result;
}

template <class Family>
Results RunEmulatedBackward(const Case& c, const DeviceRun& run = {},
                            simt::LaunchResult* launch = nullptr) {
  Results results = RunOp(c, Which::kForward);
  results.dq = Tensor::Empty(c.q.dtype, {c.q.shape[0], c.q.shape[1], c.q.shape[2]});
  results.dk = Tensor::Empty(c.k.dtype, {c.k.shape[0], c.k.shape[1], c.k.shape[2]});
  results.dv = Tensor::Empty(c.k.dtype, {c.k.shape[0], c.k.shape[1], c.k.shape[2]});
  const Status status = Family::Dispatch(c, [&]<class T, int kHeadDim>() {
    const simt::LaunchResult result = EmulateBackward<Family, T, kHeadDim>(c, run, results);
    CHECK(std::string(result.message()) == "");
    if (launch != nullptr) *launch = result;
  });
  REQUIRE(status.ok());
  return results;
}

// Against the reference on one seed; the other seeds must give the same bits.
template <class Family>
void CheckBackward(const Case& c, uint64_t seeds = 2) {
  INFO(Describe(c));
  const Results got = RunEmulatedBackward<Family>(c);
  CHECK(Inaccuracy(c, got, RunDouble(c), RunPlain(c)) == "");
  for (uint64_t seed = 1; seed < seeds; ++seed) {
    CHECK(BitDifference(got, RunEmulatedBackward<Family>(
                                 c, {.seed = seed, .blocks = 1 + static_cast<int>(seed % 3)})) ==
          "");
  }
}

template <class Family>
void CheckBackwardRaggedLengths() {
  Case c = RaggedCase(Family::kFirst);
  CheckBackward<Family>(c, kSeeds);
  c.options.causal = true;
  CheckBackward<Family>(c, kSeeds);
}

template <class Family>
void CheckBackwardHeadDims(std::initializer_list<int64_t> head_dims) {
  for (const Case& c : HeadDimCases(Family::kDtypes, head_dims)) CheckBackward<Family>(c);
}

template <class Family>
void CheckBackwardOptions(std::initializer_list<int64_t> head_dims) {
  for (const Variant& variant : Variants()) {
    for (int64_t head_dim : head_dims) {
      const Case c = OptionCase(variant, Family::kFirst, head_dim);
      INFO(variant.name);
      CheckBackward<Family>(c, head_dim == 64 ? 2 : 1);
    }
  }
}

template <class Family>
void CheckBackwardTrees() {
  for (uint64_t seed : {1, 2}) {
    CheckBackward<Family>(TreeCase(Family::kLast, seed));
  }
  // Keys 32 .. 63 end with token 128: of the tile of rows that begins there, only the first sees
  // them.
  Case c = MakeCase({.dtype = Family::kFirst,
                     .num_heads = 1,
                     .num_kv_heads = 1,
                     .head_dim = 64,
                     .slots_q = {200}});
  Ints ends(200, 200);
  std::fill(ends.begin() + 32, ends.begin() + 129, 129);
  c.options.key_end = Host(ends);
  c.options.causal = true;
  CheckBackward<Family>(c);
}

template <class Family>
void CheckBackwardGrid(const std::vector<int64_t>& head_dims) {
  for (const Case& c : GridCases(Family::kFirst, Family::kLast, head_dims)) {
    CheckBackward<Family>(c, kSeeds);
  }
}

template <class Family>
void CheckBackwardUnaligned() {
  for (int64_t head_dim : {64, 96, 192}) {
    const Case c = UnalignedCase(Family::kFirst, head_dim);
    CHECK(BitDifference(RunEmulatedBackward<Family>(c),
                        RunEmulatedBackward<Family>(c, {.vector_access = false})) == "");
  }
}

template <class Family>
void CheckBackwardPacking() {
  const Case c = PackedCase(Family::kFirst);
  const Results packed = RunEmulatedBackward<Family>(c);
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Results alone = RunEmulatedBackward<Family>(Alone(c, b));
    const Rows q = RowsQ(c, b), k = RowsK(c, b);
    CHECK(BitDifference(SliceRows(packed.dq, q.first, q.used), alone.dq) == "");
    CHECK(BitDifference(SliceRows(packed.dk, k.first, k.used), alone.dk) == "");
    CHECK(BitDifference(SliceRows(packed.dv, k.first, k.used), alone.dv) == "");
  }
}

// A block that reaches past the end of a sequence brings rows of the next: here NaN, as all that
// lies around it.
template <class Family>
void CheckBackwardIsolation(std::initializer_list<int64_t> head_dims) {
  for (int64_t head_dim : head_dims) {
    const Case c = MakeCase({.dtype = Family::kFirst,
                             .num_heads = 6,
                             .num_kv_heads = 2,
                             .head_dim = head_dim,
                             .slots_q = {40, 70, 90},
                             .slots_k = {40, 75, 90},
                             .used_q = {0, 70, 0},
                             .used_k = {0, 75, 0}});
    const Results alone = RunEmulatedBackward<Family>(Alone(c, 1));
    const Results packed = RunEmulatedBackward<Family>(c);
    const Rows q = RowsQ(c, 1), k = RowsK(c, 1);
    INFO("headDim " << head_dim);
    CHECK(BitDifference(SliceRows(packed.dq, q.first, q.used), alone.dq) == "");
    CHECK(BitDifference(SliceRows(packed.dk, k.first, k.used), alone.dk) == "");
    CHECK(BitDifference(SliceRows(packed.dv, k.first, k.used), alone.dv) == "");
  }
}

template <class Family>
void CheckBackwardBankConflicts() {
  for (int64_t head_dim : {64, 96, 128, 192, 256}) {
    simt::LaunchResult launch;
    RunEmulatedBackward<Family>(WholeTilesCase(Family::kFirst, head_dim),
                                {.blocks = 1, .count_bank_conflicts = true}, &launch);
    CheckWavefronts(head_dim, launch);
  }
}

template <class Family>
void CheckBackwardFarOffsets() {
  constexpr int64_t kRow = int64_t{1} << 20, kRows = 2100;  // 2.2e9 elements
  const simt::GlobalArray<bfloat16> q(kRow * kRows), gradients(kRow * kRows);
  const simt::GlobalArray<RowStatistics> statistics(kRows);
  for (int64_t row : {int64_t{0}, kRows - 1}) {
    float square = 0;
    for (int d = 0; d < 64; ++d) {
      q[row * kRow + d] = bfloat16(static_cast<float>(row % 7 + d % 8));
      square += static_cast<float>((row % 7 + d % 8) * (row % 7 + d % 8));
    }
    statistics[row] = {square * 0.125f * 1.4426950408889634f, square};
  }
  const simt::GlobalArray<int32_t> cu(std::vector<int32_t>{0, 1, kRows - 1, kRows});
  const simt::GlobalArray<int32_t> used(std::vector<int32_t>{1, 0, 1});
  const simt::GlobalArray<int32_t> order(4), next_tile(1);
  const simt::GlobalArray<int64_t> tile_start(5);
  BackwardArguments<bfloat16> p{};
  p.q = p.k = p.v = p.d_out = {q.data(), kRow, 64};
  // Side by side in one tensor's rows.
  p.dq = {gradients.data(), kRow, 64};
  p.dk = {gradients.data() + 64, kRow, 64};
  p.dv = {gradients.data() + 128, kRow, 64};
  p.statistics = statistics.data();
  p.sequences = {cu.data(), cu.data(), used.data(), used.data(), 3, kRows, kRows};
  p.mask = {kUnbounded, kUnbounded, nullptr};
  p.schedule = {order.data(), tile_start.data(), next_tile.data()};
  p.num_heads = p.num_kv_heads = 1;
  p.head_dim = 64;
  p.softmax_scale = 0.125f;
  p.vector_loads = p.vector_stores = true;
  const auto check = [&]<Gradient kGradient>() {
    using Kernel = typename Family::template Kernel<bfloat16, 64, kGradient>;
    const simt::LaunchResult result =
        RunTiles<Kernel>(Family::template ParamsOf<Kernel>(p), {.blocks = 1});
    REQUIRE(std::string(result.message()) == "");
  };
  check.template operator()<Gradient::kQuery>();
  check.template operator()<Gradient::kKeyAndValue>();
  for (int64_t row : {int64_t{0}, kRows - 1}) {
    for (int d = 0; d < 64; ++d) {
      CHECK(static_cast<float>(gradients[row * kRow + d]) == 0);
      CHECK(static_cast<float>(gradients[row * kRow + 64 + d]) == 0);
      CHECK(gradients[row * kRow + 128 + d].bits == q[row * kRow + d].bits);
    }
  }
  CHECK(gradients[kRow + 128].bits == 0);  // a row of the slot that is not used
}

}  // namespace varlen::varlen_attention::testing
