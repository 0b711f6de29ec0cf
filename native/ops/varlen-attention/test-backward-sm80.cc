#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "ops/varlen-attention/backward-sm80.h"
#include "ops/varlen-attention/test-backward-device.h"

// The sm_80 backward kernels, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

int kernel_runs = 0;

struct Sm80 : Elements<bfloat16, half> {
  template <class T, int kHeadDim>
  static simt::LaunchResult Run(const BackwardArguments<T>& arguments, const DeviceRun& run) {
    kernel_runs += kHeadDim <= 128 ? 2 : 3;
    return RunBackwardSm80<T, kHeadDim>(arguments, run);
  }
};
using Tests = BackwardTests<Sm80>;

TEST_CASE("sm_80 backward: ragged lengths agree with the reference on 8 seeds") {
  Tests::RaggedLengths();
}

TEST_CASE("sm_80 backward: every head dimension and both dtypes, odd ones padded inside") {
  Tests::HeadDims({64, 96, 128, 192, 256, 1, 8, 40, 80, 100, 160});
}

TEST_CASE("sm_80 backward: every option agrees with the reference") { Tests::Options(); }

TEST_CASE("sm_80 backward: tree masks, with blocks skipped and blocks seen whole") {
  Tests::Trees();
}

TEST_CASE("sm_80 backward: the small part of the grid agrees with the reference on 8 seeds") {
  Tests::Grid({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("sm_80 backward: unaligned memory takes the slow path to the same bits") {
  Tests::Unaligned();
}

TEST_CASE("sm_80 backward: a packed sequence has the bits it has alone") { Tests::Packing(); }

TEST_CASE("sm_80 backward: no bank conflicts at any head dimension") { Tests::BankConflicts(); }

// One query and one key at both ends of tensors whose offsets pass 2^31 elements; the pages between
// are never touched. With one key P is 1, so that dv is dout, and dq and dk are 0.
TEST_CASE("sm_80 backward: offsets past 2^31 elements") {
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
  const DeviceRun run{.blocks = 1};
  for (const simt::LaunchResult& result :
       {RunTiles<BackwardSm80<bfloat16, 64, Gradient::kQuery>>(p, run),
        RunTiles<BackwardSm80<bfloat16, 64, Gradient::kKeyAndValue>>(p, run)}) {
    REQUIRE(std::string(result.message()) == "");
  }
  for (int64_t row : {int64_t{0}, kRows - 1}) {
    for (int d = 0; d < 64; ++d) {
      CHECK(static_cast<float>(gradients[row * kRow + d]) == 0);
      CHECK(static_cast<float>(gradients[row * kRow + 64 + d]) == 0);
      CHECK(gradients[row * kRow + 128 + d].bits == q[row * kRow + d].bits);
    }
  }
  CHECK(gradients[kRow + 128].bits == 0);  // a row of the slot that is not used
}

TEST_CASE("sm_80 backward: how much was run") {
  MESSAGE("2 kernels in 26 instances, ", kernel_runs, " emulated launches, up to ", kSeeds,
          " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
