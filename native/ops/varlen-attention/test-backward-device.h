#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "ops/varlen-attention/backward-sm80.h"
#include "ops/varlen-attention/backward-statistics.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/test-case.h"
#include "ops/varlen-attention/test-device.h"

// What the tests of the backward kernels share: runs in the host emulator, and the cases that every
// architecture's kernels must get right. Family has Elements and runs the passes, whose statistics
// of rows are there:
//
//   struct Sm80 : Elements<bfloat16, half> {
//     template <class T, int kHeadDim>
//     static simt::LaunchResult Run(const BackwardArguments<T>& arguments, const DeviceRun& run);
//   };
namespace varlen::varlen_attention::testing {

// The passes of BackwardSm80, with the bank conflicts of all of them.
template <class T, int kHeadDim>
simt::LaunchResult RunBackwardSm80(const BackwardArguments<T>& arguments, const DeviceRun& run) {
  simt::LaunchResult result;
  const auto pass = [&]<Gradient kGradient>() {
    if (!result.ok()) return;
    const std::vector<simt::BankCount> before = std::move(result.bank_conflicts);
    result = RunTiles<BackwardSm80<T, kHeadDim, kGradient>>(arguments, run);
    result.bank_conflicts.insert(result.bank_conflicts.end(), before.begin(), before.end());
  };
  pass.template operator()<Gradient::kQuery>();
  if constexpr (kHeadDim <= 128) {
    pass.template operator()<Gradient::kKeyAndValue>();
  } else {
    pass.template operator()<Gradient::kKey>();
    pass.template operator()<Gradient::kValue>();
  }
  return result;
}

template <class Family>
struct BackwardTests {
  static Results Run(const Case& c, const DeviceRun& run = {},
                     simt::LaunchResult* launch = nullptr) {
    Results results = RunOp(c, Which::kForward);
    results.dq = Tensor::Empty(c.q.dtype, {c.q.shape[0], c.q.shape[1], c.q.shape[2]});
    results.dk = Tensor::Empty(c.k.dtype, {c.k.shape[0], c.k.shape[1], c.k.shape[2]});
    results.dv = Tensor::Empty(c.k.dtype, {c.k.shape[0], c.k.shape[1], c.k.shape[2]});
    const Status status = Family::Dispatch(c, [&]<class T, int kHeadDim>() {
      const simt::LaunchResult result = Emulate<T, kHeadDim>(c, run, results);
      CHECK(std::string(result.message()) == "");
      if (launch != nullptr) *launch = result;
    });
    REQUIRE(status.ok());
    return results;
  }

  // Against the reference on one seed; the other seeds must give the same bits.
  static void Check(const Case& c, uint64_t seeds = 2) {
    INFO(Describe(c));
    const Results got = Run(c);
    CHECK(Inaccuracy(c, got, RunDouble(c), RunPlain(c)) == "");
    for (uint64_t seed = 1; seed < seeds; ++seed) {
      CHECK(BitDifference(got, Run(c, {.seed = seed, .blocks = 1 + static_cast<int>(seed % 3)})) ==
            "");
    }
  }

  static void RaggedLengths() {
    Case c = MakeCase({.dtype = Family::kFirst,
                       .num_heads = 4,
                       .num_kv_heads = 2,
                       .head_dim = 64,
                       .slots_q = {0, 1, 63, 64, 65, 0, 129, 3},
                       .slots_k = {1, 65, 64, 0, 63, 0, 130, 1},
                       .tail_q = 3,
                       .tail_k = 2});
    Check(c, kSeeds);
    c.options.causal = true;
    Check(c, kSeeds);
  }

  static void HeadDims(std::initializer_list<int64_t> head_dims) {
    uint64_t seed = 100;
    for (DType dtype : Family::kDtypes) {
      for (int64_t head_dim : head_dims) {
        Case c = MakeCase({.dtype = dtype,
                           .num_heads = 3,
                           .num_kv_heads = 1,
                           .head_dim = head_dim,
                           .slots_q = {50, 0, 7},
                           .slots_k = {70, 5, 33},
                           .tail_q = 2,
                           .seed = ++seed});
        c.options.causal = head_dim % 3 != 0;
        Check(c);
      }
    }
  }

  static void Options() {
    for (const Variant& variant : Variants()) {
      for (int64_t head_dim : {64, 192}) {
        const Case c = OptionCase(variant, Family::kFirst, head_dim);
        INFO(variant.name);
        Check(c, head_dim == 64 ? 2 : 1);
      }
    }
  }

  static void Trees() {
    for (uint64_t seed : {1, 2}) {
      Check(TreeCase(Family::kLast, seed));
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
    Check(c);
  }

  // The small length pairs of flash-attention's own test grid; key/value heads, head dimensions and
  // masks take turns.
  static void Grid(const std::vector<int64_t>& head_dims) {
    const int32_t pairs[][2] = {{1, 1},     {1, 3},    {2, 1},    {3, 113},  {64, 128}, {128, 128},
                                {113, 203}, {128, 97}, {108, 80}, {160, 60}, {51, 1},   {70, 190}};
    const int64_t kv_heads[] = {6, 2, 1};
    int turn = 0;
    for (const auto& [longest_q, longest_k] : pairs) {
      Pack pack{.dtype = turn % 2 == 0 ? Family::kFirst : Family::kLast,
                .num_heads = 6,
                .num_kv_heads = kv_heads[turn % 3],
                .head_dim = head_dims[static_cast<size_t>(turn) % head_dims.size()],
                .slots_q = {longest_q, 1 + longest_q / 3},
                .slots_k = {longest_k, turn % 5 == 4 ? 0 : 1 + longest_k / 2},
                .tail_q = 5,
                .tail_k = 7,
                .seed = 500 + static_cast<uint64_t>(turn)};
      Case c = MakeCase(pack);
      c.with_d_lse = turn % 2 == 0;
      c.options.causal = turn % 4 == 1 || turn % 4 == 3;
      if (turn % 4 >= 2) c.options.window_left = 20 + turn;
      if (turn % 4 == 2) c.options.window_right = 7;
      if (turn % 6 == 5) c.options.softcap = 15;
      if (turn % 6 == 4) c.options.softmax_scale = 0.1f;
      Check(c, kSeeds);
      ++turn;
    }
  }

  static void Unaligned() {
    for (int64_t head_dim : {64, 96, 192}) {
      const Case c = MakeCase({.dtype = Family::kFirst,
                               .num_heads = 2,
                               .num_kv_heads = 1,
                               .head_dim = head_dim,
                               .slots_q = {70, 9},
                               .tail_q = 1});
      CHECK(BitDifference(Run(c), Run(c, {.vector_access = false})) == "");
    }
  }

  // MakeCase fills every row outside a sequence with NaN, so this is also the isolation test.
  static void Packing() {
    Case c = MakeCase({.dtype = Family::kFirst,
                       .num_heads = 6,
                       .num_kv_heads = 2,
                       .head_dim = 64,
                       .slots_q = {100, 1, 64, 37},
                       .tail_q = 9,
                       .tail_k = 9});
    c.options.causal = true;
    const Results packed = Run(c);
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      const Results alone = Run(Alone(c, b));
      const Rows q = RowsQ(c, b), k = RowsK(c, b);
      CHECK(BitDifference(SliceRows(packed.dq, q.first, q.used), alone.dq) == "");
      CHECK(BitDifference(SliceRows(packed.dk, k.first, k.used), alone.dk) == "");
      CHECK(BitDifference(SliceRows(packed.dv, k.first, k.used), alone.dv) == "");
    }
  }

  static void BankConflicts() {
    for (int64_t head_dim : {64, 96, 128, 192, 256}) {
      const Case c = MakeCase({.dtype = Family::kFirst,
                               .num_heads = 1,
                               .num_kv_heads = 1,
                               .head_dim = head_dim,
                               .slots_q = {128}});
      simt::LaunchResult launch;
      Run(c, {.blocks = 1, .count_bank_conflicts = true}, &launch);
      for (const simt::BankCount& count : launch.bank_conflicts) {
        INFO("headDim " << head_dim << ", " << simt::Describe(count.site));
        CHECK(count.wavefronts == count.ideal);
      }
    }
  }

 private:
  // Fills the gradients of `results`, whose out and softmax_lse are there.
  template <class T, int kHeadDim>
  static simt::LaunchResult Emulate(const Case& c, const DeviceRun& run, const Results& results) {
    const auto q = Upload(c.q), k = Upload(c.k), v = Upload(c.v), d_out = Upload(c.d_out);
    const auto out = Upload(results.out), lse = Upload(results.softmax_lse),
               d_lse = Upload(c.d_lse);
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
    if (result.ok()) result = Family::template Run<T, kHeadDim>(arguments, run);
    Download(dq, results.dq);
    Download(dk, results.dk);
    Download(dv, results.dv);
    return result;
  }
};

}  // namespace varlen::varlen_attention::testing
