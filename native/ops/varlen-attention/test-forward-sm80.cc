#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/test-forward-device.h"

// The sm_80 forward kernel, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

struct Sm80 : Elements<bfloat16, half> {
  template <class T, int kHeadDim>
  using Kernel = ForwardSm80<T, kHeadDim>;
  template <class Kernel, class T>
  static const ForwardArguments<T>& ParamsOf(const ForwardArguments<T>& arguments, const Case&) {
    return arguments;
  }
};

TEST_CASE("sm_80 forward: ragged lengths agree with the reference on 8 seeds") {
  CheckRaggedLengths<Sm80>();
}

TEST_CASE("sm_80 forward: every head dimension and both dtypes, odd ones padded inside") {
  CheckHeadDims<Sm80>({64, 96, 128, 192, 256, 1, 8, 40, 80, 100, 160});
}

TEST_CASE("sm_80 forward: every option agrees with the reference") { CheckOptions<Sm80>(); }

TEST_CASE("sm_80 forward: tree masks, with blocks skipped and blocks seen whole") {
  CheckTrees<Sm80>();
}

TEST_CASE("sm_80 forward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckGrid<Sm80>({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("sm_80 forward: a packed sequence has the bits it has alone") { CheckPacking<Sm80>(); }

TEST_CASE("sm_80 forward: no bank conflicts at any head dimension") { CheckBankConflicts<Sm80>(); }

TEST_CASE("sm_80 forward: keys in splits agree with the reference, whatever their number") {
  CheckSplits<Sm80>();
}

TEST_CASE("sm_80 forward: a sequence's own splits depend on nothing else in the pack") {
  CheckOwnSplits<Sm80>();
}

TEST_CASE("sm_80 forward: unaligned memory takes the slow path to the same bits") {
  CheckUnaligned<Sm80>();
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
  p.q = p.k = p.v = {q.data(), kRow, 64};
  p.out = {out.data(), kRow, 64};
  p.softmax_lse = lse.data();
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
