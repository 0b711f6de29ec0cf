#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/test-device.h"

// The sm_80 forward kernel, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

int kernel_runs = 0;

template <class T, int kHeadDim>
simt::LaunchResult Emulate(const Case& c, const DeviceRun& run, const Results& results) {
  using Kernel = ForwardSm80<T, kHeadDim>;
  const Options& options = c.options;
  const auto q = Upload(c.q), k = Upload(c.k), v = Upload(c.v);
  const simt::GlobalArray<unsigned char> out(c.q.size() * SizeOf(c.q.dtype));
  const simt::GlobalArray<float> lse(c.q.shape[1] * c.q.shape[0]);
  const DeviceOptions device(c);
  const bool aligned = run.vector_access && kHeadDim > 0 && c.q.shape[2] % 8 == 0;
  const ForwardArguments<T> arguments{.q = reinterpret_cast<const T*>(q.data()),
                                      .k = reinterpret_cast<const T*>(k.data()),
                                      .v = reinterpret_cast<const T*>(v.data()),
                                      .out = reinterpret_cast<T*>(out.data()),
                                      .softmax_lse = lse.data(),
                                      .q_row = c.q.strides[0],
                                      .q_head = c.q.strides[1],
                                      .k_row = c.k.strides[0],
                                      .k_head = c.k.strides[1],
                                      .v_row = c.v.strides[0],
                                      .v_head = c.v.strides[1],
                                      .out_row = c.q.shape[1] * c.q.shape[2],
                                      .out_head = c.q.shape[2],
                                      .lse_stride = c.q.shape[0],
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
                                      .vector_stores = aligned};

  const simt::LaunchResult result = RunTiles<Kernel>(arguments, run);
  ++kernel_runs;
  Download(out, results.out);
  Download(lse, results.softmax_lse);
  return result;
}

Results RunEmulated(const Case& c, const DeviceRun& run = {},
                    simt::LaunchResult* launch = nullptr) {
  Results results;
  results.out = Tensor::Empty(c.q.dtype, {c.q.shape[0], c.q.shape[1], c.q.shape[2]});
  results.softmax_lse = Tensor::Empty(DType::kF32, {c.q.shape[1], c.q.shape[0]});
  const Status status = DispatchKernel(c, [&]<class T, int kHeadDim>() {
    const simt::LaunchResult result = Emulate<T, kHeadDim>(c, run, results);
    CHECK(std::string(result.message()) == "");
    if (launch != nullptr) *launch = result;
  });
  REQUIRE(status.ok());
  return results;
}

// Against the reference on one seed; the other seeds must give the same bits.
void CheckCase(const Case& c, uint64_t seeds = 2) {
  INFO(Describe(c));
  const Results got = RunEmulated(c);
  CHECK(Inaccuracy(c, got, RunDouble(c, Which::kForward), RunPlain(c, Which::kForward),
                   Which::kForward) == "");
  for (uint64_t seed = 1; seed < seeds; ++seed) {
    const Results again = RunEmulated(c, {.seed = seed, .blocks = 1 + static_cast<int>(seed % 3)});
    CHECK(BitDifference(got.out, again.out) == "");
    CHECK(BitDifference(got.softmax_lse, again.softmax_lse) == "");
  }
}

TEST_CASE("sm_80 forward: ragged lengths agree with the reference on 8 seeds") {
  Case c = MakeCase({.dtype = DType::kBF16,
                     .num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 64,
                     .slots_q = {0, 1, 63, 64, 65, 0, 129, 3},
                     .slots_k = {1, 65, 64, 0, 63, 0, 130, 1},
                     .tail_q = 3,
                     .tail_k = 2});
  CheckCase(c, kSeeds);
  c.options.causal = true;
  CheckCase(c, kSeeds);
}

TEST_CASE("sm_80 forward: every head dimension and both dtypes, odd ones padded inside") {
  uint64_t seed = 100;
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    for (int64_t head_dim : {64, 96, 128, 192, 256, 1, 8, 40, 80, 100, 160}) {
      Case c = MakeCase({.dtype = dtype,
                         .num_heads = 3,
                         .num_kv_heads = 1,
                         .head_dim = head_dim,
                         .slots_q = {50, 0, 7},
                         .slots_k = {70, 5, 33},
                         .tail_q = 2,
                         .seed = ++seed});
      c.options.causal = head_dim % 3 != 0;
      CheckCase(c);
    }
  }
}

TEST_CASE("sm_80 forward: every option agrees with the reference") {
  for (const Variant& variant : Variants()) {
    Case c = MakeCase({.dtype = DType::kBF16,
                       .num_heads = 2,
                       .num_kv_heads = 1,
                       .head_dim = 64,
                       .slots_q = {90, 140, 33},
                       .slots_k = {150, 90, 170},
                       .used_q = {81, 140, 0},
                       .used_k = {149, 0, 160}});
    variant.apply(c);
    INFO(variant.name);
    CheckCase(c);
  }
}

TEST_CASE("sm_80 forward: tree masks, with blocks skipped and blocks seen whole") {
  for (uint64_t seed : {1, 2}) {
    Case c = MakeCase({.dtype = DType::kF16,
                       .num_heads = 2,
                       .num_kv_heads = 2,
                       .head_dim = seed == 1 ? 64 : 40,
                       .slots_q = {7, 200, 0, 1, 128},
                       .tail_q = 4,
                       .tail_k = 4,
                       .seed = seed});
    AddTrees(c, seed * 100);
    CheckCase(c);
  }
}

// The small length pairs of flash-attention's own test grid; key/value heads, head dimensions and
// masks take turns.
TEST_CASE("sm_80 forward: the small part of the grid agrees with the reference on 8 seeds") {
  const int32_t pairs[][2] = {{1, 1},     {1, 3},    {2, 1},    {3, 113},  {64, 128}, {128, 128},
                              {113, 203}, {128, 97}, {108, 80}, {160, 60}, {51, 1},   {70, 190}};
  const int64_t kv_heads[] = {6, 2, 1}, head_dims[] = {64, 96, 128, 192, 256, 40, 100};
  int turn = 0;
  for (const auto& [longest_q, longest_k] : pairs) {
    Pack pack{.dtype = turn % 2 == 0 ? DType::kBF16 : DType::kF16,
              .num_heads = 6,
              .num_kv_heads = kv_heads[turn % 3],
              .head_dim = head_dims[turn % 7],
              .slots_q = {longest_q, 1 + longest_q / 3},
              .slots_k = {longest_k, turn % 5 == 4 ? 0 : 1 + longest_k / 2},
              .tail_q = 5,
              .tail_k = 7,
              .seed = 500 + static_cast<uint64_t>(turn)};
    Case c = MakeCase(pack);
    c.options.causal = turn % 4 == 1 || turn % 4 == 3;
    if (turn % 4 >= 2) c.options.window_left = 20 + turn;
    if (turn % 4 == 2) c.options.window_right = 7;
    if (turn % 6 == 5) c.options.softcap = 15;
    if (turn % 6 == 4) c.options.softmax_scale = 0.1f;
    CheckCase(c, kSeeds);
    ++turn;
  }
}

TEST_CASE("sm_80 forward: unaligned memory takes the slow path to the same bits") {
  for (int64_t head_dim : {64, 96}) {
    const Case c = MakeCase({.dtype = DType::kBF16,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = head_dim,
                             .slots_q = {70, 9},
                             .tail_q = 1});
    const Results fast = RunEmulated(c), slow = RunEmulated(c, {.vector_access = false});
    CHECK(BitDifference(fast.out, slow.out) == "");
    CHECK(BitDifference(fast.softmax_lse, slow.softmax_lse) == "");
  }
}

// MakeCase fills every row outside a sequence with NaN, so this is also the isolation test.
TEST_CASE("sm_80 forward: a packed sequence has the bits it has alone") {
  Case c = MakeCase({.dtype = DType::kBF16,
                     .num_heads = 6,
                     .num_kv_heads = 2,
                     .head_dim = 64,
                     .slots_q = {100, 1, 64, 37},
                     .tail_q = 9,
                     .tail_k = 9});
  c.options.causal = true;
  const Results packed = RunEmulated(c);
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Results alone = RunEmulated(Alone(c, b));
    const Rows rows = RowsQ(c, b);
    CHECK(BitDifference(SliceRows(packed.out, rows.first, rows.used), alone.out) == "");
    CHECK(BitDifference(SliceRows(packed.softmax_lse, rows.first, rows.used, 1),
                        alone.softmax_lse) == "");
  }
}

TEST_CASE("sm_80 forward: no bank conflicts at any head dimension") {
  for (int64_t head_dim : {64, 96, 128, 192, 256}) {
    const Case c = MakeCase({.dtype = DType::kBF16,
                             .num_heads = 1,
                             .num_kv_heads = 1,
                             .head_dim = head_dim,
                             .slots_q = {128}});
    simt::LaunchResult launch;
    RunEmulated(c, {.blocks = 1, .count_bank_conflicts = true}, &launch);
    for (const simt::BankCount& count : launch.bank_conflicts) {
      INFO("headDim " << head_dim << ", " << simt::Describe(count.site));
      CHECK(count.wavefronts == count.ideal);
    }
  }
}

// One query and one key at both ends of tensors whose offsets pass 2^31 elements; the pages between
// are never touched.
TEST_CASE("sm_80 forward: offsets past 2^31 elements") {
  using Kernel = ForwardSm80<bfloat16, 64>;
  constexpr int64_t kRow = int64_t{1} << 20, kRows = 2100;  // 2.2e9 elements
  const simt::GlobalArray<bfloat16> q(kRow * kRows), out(kRow * kRows);
  const simt::GlobalArray<float> lse(kRows);
  for (int64_t row : {int64_t{0}, kRows - 1}) {
    for (int d = 0; d < 64; ++d) q[row * kRow + d] = bfloat16(static_cast<float>(row % 7 + d));
  }
  const simt::GlobalArray<int32_t> cu(std::vector<int32_t>{0, 1, kRows - 1, kRows});
  const simt::GlobalArray<int32_t> used(std::vector<int32_t>{1, 0, 1});
  const simt::GlobalArray<int32_t> order(4), next_tile(1);
  const simt::GlobalArray<int64_t> tile_start(5);
  ForwardArguments<bfloat16> p{};
  p.q = p.k = p.v = q.data();
  p.out = out.data();
  p.softmax_lse = lse.data();
  p.q_row = p.k_row = p.v_row = p.out_row = kRow;
  p.q_head = p.k_head = p.v_head = p.out_head = 64;
  p.lse_stride = kRows;
  p.sequences = {cu.data(), cu.data(), used.data(), used.data(), 3, kRows, kRows};
  p.mask = {kUnbounded, kUnbounded, nullptr};
  p.schedule = {order.data(), tile_start.data(), next_tile.data()};
  p.num_heads = p.num_kv_heads = 1;
  p.head_dim = 64;
  p.softmax_scale = 0.125f;
  p.vector_loads = p.vector_stores = true;
  const simt::LaunchResult result = RunTiles<Kernel>(p, {.blocks = 1});
  REQUIRE(std::string(result.message()) == "");
  for (int64_t row : {int64_t{0}, kRows - 1}) {
    for (int d = 0; d < 64; ++d) CHECK(out[row * kRow + d].bits == q[row * kRow + d].bits);
  }
  CHECK(lse[1] == -std::numeric_limits<float>::infinity());
}

// --- the scheduler ---

struct Scheduled {
  std::vector<int32_t> order;
  std::vector<int64_t> tile_start;
};
Scheduled RunPrepare(const std::vector<int32_t>& lengths, bool causal, int32_t block, uint64_t seed,
                     bool of_keys = false) {
  std::vector<int32_t> cu{0};
  for (int32_t length : lengths) cu.push_back(cu.back() + length);
  const auto num_seqs = static_cast<int32_t>(lengths.size());
  const simt::GlobalArray<int32_t> device_cu(cu), order(num_seqs + 1), next_tile(1);
  const simt::GlobalArray<int64_t> tile_start(num_seqs + 2);
  const Prepare::Params params{
      {device_cu.data(), device_cu.data(), nullptr, nullptr, num_seqs, cu.back(), cu.back()},
      {kUnbounded, causal ? 0 : kUnbounded, nullptr},
      {order.data(), tile_start.data(), next_tile.data()},
      {.of_keys = of_keys,
       .num_kv_heads = 1,
       .group = 1,
       .head_dim = 64,
       .block_rows = block,
       .block_columns = block}};
  const simt::LaunchResult result =
      simt::Launch<Prepare>(1, Prepare::kSharedBytes, params, {.seed = seed});
  CHECK(std::string(result.message()) == "");
  CHECK(next_tile[0] == 0);
  return {{order.begin(), order.end()}, {tile_start.begin(), tile_start.end()}};
}

TEST_CASE("sm_80 scheduler: heaviest sequences first, ties by index, as worked by hand") {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    // 128-row tiles: 4096 has 32, 100 has 1, 0 none, 700 has 6: 39 in all.
    const Scheduled s = RunPrepare({4096, 100, 0, 700, 100}, true, 128, seed);
    CHECK(s.order == std::vector<int32_t>{0, 3, 1, 4, 2, 5});
    CHECK(s.tile_start == std::vector<int64_t>{0, 32, 38, 39, 40, 40, 40});
  }
}

TEST_CASE("sm_80 scheduler: more sequences than threads, every tile is found once") {
  std::vector<int32_t> lengths;
  for (int i = 0; i < 1200; ++i) lengths.push_back(i * 37 % 300);
  const Scheduled s = RunPrepare(lengths, false, 64, 1);
  std::vector<int32_t> sorted = s.order;
  std::sort(sorted.begin(), sorted.end());
  for (int32_t i = 0; i <= 1200; ++i) REQUIRE(sorted[i] == i);
  const auto blocks = [&](int32_t b) { return b < 1200 ? (lengths[b] + 63) / 64 : 0; };
  for (size_t i = 1; i < s.order.size(); ++i) {
    if (i % Prepare::kThreads == 0) continue;  // each chunk is sorted by itself
    CHECK(blocks(s.order[i - 1]) >= blocks(s.order[i]));
  }
  int64_t tiles = 0;
  for (int32_t entry = 0; entry <= 1200; ++entry) {
    CHECK(s.tile_start[entry] == tiles);
    tiles += blocks(s.order[entry]);
  }
  CHECK(s.tile_start[1201] == tiles);
}

TEST_CASE("sm_80 forward: how much was run") {
  MESSAGE("1 kernel in 10 instances, ", kernel_runs, " emulated launches, up to ", kSeeds,
          " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
