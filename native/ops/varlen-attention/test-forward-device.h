#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/split-combine.h"
#include "ops/varlen-attention/test-case.h"
#include "ops/varlen-attention/test-device.h"

// What the tests of the forward kernels share: runs in the host emulator, and the cases that every
// architecture's kernel must get right. Family names the kernel of a dtype and head dimension and
// makes its parameters:
//
//   struct Sm80 : Elements<bfloat16, half> {
//     template <class T, int kHeadDim> using Kernel = ForwardSm80<T, kHeadDim>;
//     template <class Kernel, class T>
//     static auto ParamsOf(const ForwardArguments<T>& arguments, const Case& c) -> Kernel::Params;
//   };
namespace varlen::varlen_attention::testing {

inline int kernel_runs = 0;

template <class Family, class T, int kHeadDim>
simt::LaunchResult EmulateForward(const Case& c, const DeviceRun& run, const Results& results) {
  using Kernel = typename Family::template Kernel<T, kHeadDim>;
  const Options& options = c.options;
  const auto q = Upload(c.q), k = Upload(c.k), v = Upload(c.v);
  const simt::GlobalArray<unsigned char> out(c.q.size() * SizeOf(c.q.dtype));
  const simt::GlobalArray<float> lse(c.q.shape[1] * c.q.shape[0]);
  const int64_t rows = c.q.shape[0] * c.q.shape[1];
  const bool split = run.splits > 1;
  const simt::GlobalArray<float> partial_lse(split ? run.splits * rows : 0);
  const simt::GlobalArray<float> partial_out(split ? run.splits * c.q.size() : 0);
  const DeviceOptions device(c);
  const bool aligned = run.vector_access && kHeadDim > 0 && c.q.shape[2] % 8 == 0;
  const ForwardArguments<T> arguments{.q = MatrixAt<const T>(q, c.q),
                                      .k = MatrixAt<const T>(k, c.k),
                                      .v = MatrixAt<const T>(v, c.v),
                                      .out = MatrixAt<T>(out, results.out),
                                      .softmax_lse = split ? partial_lse.data() : lse.data(),
                                      .sequences = device.sequences(),
                                      .mask = device.mask(),
                                      .schedule = device.schedule(),
                                      .alibi_slopes = device.alibi_slopes(),
                                      .alibi_sequence_stride = device.alibi_sequence_stride(),
                                      .num_heads = static_cast<int32_t>(c.q.shape[1]),
                                      .num_kv_heads = static_cast<int32_t>(c.k.shape[1]),
                                      .head_dim = static_cast<int32_t>(c.q.shape[2]),
                                      .softmax_scale = options.softmax_scale,
                                      .softcap = options.softcap,
                                      .vector_loads = aligned,
                                      .vector_stores = aligned,
                                      .splits = run.splits,
                                      .same_splits = run.same_splits,
                                      .partial_out = partial_out.data()};

  simt::LaunchResult result =
      RunTiles<Kernel>(Family::template ParamsOf<Kernel>(arguments, c), run);
  ++kernel_runs;
  if (split && result.ok()) {
    result = simt::Launch<SplitCombine<T>>(
        run.blocks, SplitCombine<T>::kSharedBytes,
        {partial_out.data(), partial_lse.data(), arguments.out, lse.data(), c.q.shape[0],
         arguments.num_heads, arguments.head_dim, run.splits},
        {.seed = run.seed});
    ++kernel_runs;
  }
  Download(out, results.out);
  Download(lse, results.softmax_lse);
  return result;
}

template <class Family>
Results RunEmulated(const Case& c, const DeviceRun& run = {},
                    simt::LaunchResult* launch = nullptr) {
  Results results;
  results.out = Tensor::Empty(c.q.dtype, {c.q.shape[0], c.q.shape[1], c.q.shape[2]});
  results.softmax_lse = Tensor::Empty(DType::kF32, {c.q.shape[1], c.q.shape[0]});
  const Status status = Family::Dispatch(c, [&]<class T, int kHeadDim>() {
    const simt::LaunchResult result = EmulateForward<Family, T, kHeadDim>(c, run, results);
    CHECK(std::string(result.message()) == "");
    if (launch != nullptr) *launch = result;
  });
  REQUIRE(status.ok());
  return results;
}

// Against the reference on one seed; the other seeds must give the same bits.
template <class Family>
void CheckCase(const Case& c, uint64_t seeds = 2) {
  INFO(Describe(c));
  const Results got = RunEmulated<Family>(c);
  CHECK(Inaccuracy(c, got, RunDouble(c, Which::kForward), RunPlain(c, Which::kForward),
                   Which::kForward) == "");
  for (uint64_t seed = 1; seed < seeds; ++seed) {
    const Results again =
        RunEmulated<Family>(c, {.seed = seed, .blocks = 1 + static_cast<int>(seed % 3)});
    CHECK(BitDifference(got.out, again.out) == "");
    CHECK(BitDifference(got.softmax_lse, again.softmax_lse) == "");
  }
}

template <class Family>
void CheckRaggedLengths() {
  Case c = RaggedCase(Family::kFirst);
  CheckCase<Family>(c, kSeeds);
  c.options.causal = true;
  CheckCase<Family>(c, kSeeds);
}

template <class Family>
void CheckHeadDims(std::initializer_list<int64_t> head_dims) {
  for (const Case& c : HeadDimCases(Family::kDtypes, head_dims)) CheckCase<Family>(c);
}

template <class Family>
void CheckOptions() {
  for (const Variant& variant : Variants()) {
    const Case c = OptionCase(variant, Family::kFirst, 64);
    INFO(variant.name);
    CheckCase<Family>(c);
  }
}

template <class Family>
void CheckTrees() {
  for (uint64_t seed : {1, 2}) {
    CheckCase<Family>(TreeCase(Family::kLast, seed));
  }
}

template <class Family>
void CheckGrid(const std::vector<int64_t>& head_dims) {
  for (const Case& c : GridCases(Family::kFirst, Family::kLast, head_dims)) {
    CheckCase<Family>(c, kSeeds);
  }
}

template <class Family>
void CheckPacking() {
  const Case c = PackedCase(Family::kFirst);
  const Results packed = RunEmulated<Family>(c);
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Results alone = RunEmulated<Family>(Alone(c, b));
    const Rows rows = RowsQ(c, b);
    CHECK(BitDifference(SliceRows(packed.out, rows.first, rows.used), alone.out) == "");
    CHECK(BitDifference(SliceRows(packed.softmax_lse, rows.first, rows.used, 1),
                        alone.softmax_lse) == "");
  }
}

template <class Family>
void CheckBankConflicts() {
  for (int64_t head_dim : {64, 96, 128, 192, 256}) {
    simt::LaunchResult launch;
    RunEmulated<Family>(WholeTilesCase(Family::kFirst, head_dim),
                        {.blocks = 1, .count_bank_conflicts = true}, &launch);
    CheckWavefronts(head_dim, launch);
  }
}

template <class Family>
void CheckSplits() {
  for (const char* name : {"full", "causal", "window", "softcap", "everything"}) {
    for (int32_t splits : {2, 3, 40}) {
      for (int64_t head_dim : {64, 100, 192}) {
        Case c = MakeCase({.dtype = splits == 3 ? Family::kLast : Family::kFirst,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .head_dim = head_dim,
                           .slots_q = {1, 5, 0, 90, 3},
                           .slots_k = {200, 330, 7, 150, 70},
                           .used_q = {1, 5, 0, 80, 2},
                           .used_k = {200, 0, 7, 150, 1},
                           .tail_q = 3,
                           .tail_k = 2});
        Named(name).apply(c);
        INFO(Describe(c) << " in " << splits);
        const DeviceRun run{.splits = splits, .same_splits = true};
        const Results got = RunEmulated<Family>(c, run);
        CHECK(Inaccuracy(c, got, RunDouble(c, Which::kForward), RunPlain(c, Which::kForward),
                         Which::kForward) == "");
        DeviceRun again = run;
        again.seed = 5;
        again.blocks = 2;
        CHECK(BitDifference(got, RunEmulated<Family>(c, again)) == "");
      }
    }
  }
}

// Few rows against many keys are cut, the others are not: alone or packed, the bits are the same.
template <class Family>
void CheckOwnSplits() {
  Case c = MakeCase({.dtype = Family::kFirst,
                     .num_heads = 2,
                     .num_kv_heads = 1,
                     .head_dim = 64,
                     .slots_q = {1, 140, 2, 3},
                     .slots_k = {3000, 300, 1023, 2100},
                     .tail_q = 2});
  const Results packed = RunEmulated<Family>(c, {.splits = 16});
  CHECK(Inaccuracy(c, packed, RunDouble(c, Which::kForward), RunPlain(c, Which::kForward),
                   Which::kForward) == "");
  const int32_t splits[] = {2, 1, 1, 2};
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Results alone =
        RunEmulated<Family>(Alone(c, b), {.splits = splits[b], .same_splits = true});
    const Rows rows = RowsQ(c, b);
    CHECK(BitDifference(SliceRows(packed.out, rows.first, rows.used), alone.out) == "");
    CHECK(BitDifference(SliceRows(packed.softmax_lse, rows.first, rows.used, 1),
                        alone.softmax_lse) == "");
  }
}

template <class Family>
void CheckUnaligned() {
  for (int64_t head_dim : {64, 96}) {
    const Case c = UnalignedCase(Family::kFirst, head_dim);
    const Results fast = RunEmulated<Family>(c),
                  slow = RunEmulated<Family>(c, {.vector_access = false});
    CHECK(BitDifference(fast.out, slow.out) == "");
    CHECK(BitDifference(fast.softmax_lse, slow.softmax_lse) == "");
  }
}

}  // namespace varlen::varlen_attention::testing
