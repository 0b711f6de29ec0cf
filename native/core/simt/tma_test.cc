#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/simt/test_kernels.h"

// TMA boxes against plain indexing: rank, swizzle, borders, stores and additions.
namespace varlen::simt::testing {
namespace {

// A [depth, height, width] tensor whose element is its own index, with padded rows.
struct Numbered {
  static constexpr int kWidth = 72, kHeight = 5, kDepth = 7, kRow = 80;
  GlobalArray<half> data{kDepth * kHeight * kRow};

  Numbered() {
    for (int64_t i = 0; i < data.size(); ++i) data[i].bits = static_cast<uint16_t>(i);
  }
  TensorMap Map(int box_width, int box_depth, Swizzle swizzle) const {
    return MakeTensorMap({.data = data.data(),
                          .dtype = DType::kF16,
                          .rank = 3,
                          .size = {kWidth, kHeight, kDepth},
                          .stride = {1, kRow, kHeight * kRow},
                          .box = {box_width, 1, box_depth},
                          .swizzle = swizzle});
  }
  uint16_t At(int x, int y, int z) const {
    const bool inside = x >= 0 && x < kWidth && y >= 0 && y < kHeight && z >= 0 && z < kDepth;
    return inside ? static_cast<uint16_t>((z * kHeight + y) * kRow + x) : 0;
  }
};

// Loads a box at (x, y, z) and compares every element, with zeros outside the tensor.
void CheckLoad(Swizzle swizzle, int x, int y, int z, uint64_t seed) {
  const Numbered tensor;
  const int span = swizzle == Swizzle::kNone ? 64 : SwizzleSpan(swizzle), width = span / 2;
  const TensorMap map = tensor.Map(width, 8, swizzle);
  const LaunchResult result = RunBody<32>(8 * 1024 + 8, {.seed = seed}, [&](unsigned char* shared) {
    auto* barrier = reinterpret_cast<uint64_t*>(shared + 8 * 1024);
    if (ThreadIndex() == 0) {
      MBarrierInit(barrier, 1);
      FenceMBarrierInit();
      MBarrierArriveExpect(barrier, 8 * span);
      TmaLoad(shared, map, barrier, {x, y, z});
    }
    SyncWarp();
    MBarrierWait(barrier, 0);
    for (int i = ThreadIndex(); i < 8 * width; i += kWarpSize) {
      const int row = i / width, column = i % width;
      const int line = row * span / 128;  // of 128 bytes
      int chunk = row * span % 128 / 16 + column / 8;
      if (swizzle != Swizzle::kNone) chunk ^= line % 8 & (span / 16 - 1);
      const auto* at = reinterpret_cast<const uint16_t*>(shared + line * 128 + chunk * 16);
      CHECK(Load(at + column % 8) == tensor.At(x + column, y, z + row));
    }
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("a TMA load brings the box, swizzled, and zeros outside the tensor") {
  uint64_t seed = 0;
  for (Swizzle swizzle :
       {Swizzle::kNone, Swizzle::k32Bytes, Swizzle::k64Bytes, Swizzle::k128Bytes}) {
    CheckLoad(swizzle, 0, 0, 0, ++seed);
    CheckLoad(swizzle, 8, 3, -3, ++seed);
    CheckLoad(swizzle, 64, 4, 4, ++seed);
    CheckLoad(swizzle, -8, 1, 6, ++seed);
  }
}

TEST_CASE("a TMA store writes the box and nothing outside the tensor") {
  for (uint64_t seed : {1, 2, 3}) {
    const Numbered tensor;
    const std::vector<half> before(tensor.data.begin(), tensor.data.end());
    const TensorMap map = tensor.Map(64, 4, Swizzle::k128Bytes);
    const LaunchResult result = RunBody<32>(1024, {.seed = seed}, [&](unsigned char* shared) {
      for (int i = ThreadIndex(); i < 4 * 64; i += kWarpSize) {
        const int row = i / 64, column = i % 64;
        auto* at = reinterpret_cast<uint16_t*>(shared + row * 128 + (column / 8 ^ row) * 16);
        Store(at + column % 8, static_cast<uint16_t>(10000 + i));
      }
      FenceAsyncProxy();
      SyncWarp();
      if (ThreadIndex() == 0) {
        TmaStore(map, shared, {16, 2, 5});
        BulkCommit();
        BulkWait<0>();
      }
    });
    REQUIRE(std::string(result.message()) == "");
    for (int64_t i = 0; i < tensor.data.size(); ++i) {
      const int64_t x = i % Numbered::kRow, y = i / Numbered::kRow % Numbered::kHeight;
      const int64_t z = i / (Numbered::kRow * Numbered::kHeight);
      const bool inside = x >= 16 && x < Numbered::kWidth && y == 2 && z >= 5;
      const int64_t stored = 10000 + (z - 5) * 64 + x - 16;
      CHECK(tensor.data[i].bits == (inside ? stored : before[i].bits));
    }
  }
}

TEST_CASE("TMA additions of several threads all arrive") {
  GlobalArray<float> sums(32);
  std::fill(sums.begin(), sums.end(), 1.0f);
  const TensorMap map = MakeTensorMap({.data = sums.data(),
                                       .dtype = DType::kF32,
                                       .rank = 1,
                                       .size = {32},
                                       .stride = {1},
                                       .box = {32}});
  const LaunchResult result = RunBody<64>(256, [&](unsigned char* shared) {
    auto* tile = reinterpret_cast<float*>(shared) + WarpIndex() * 32;
    Store(tile + LaneIndex(), static_cast<float>(LaneIndex()));
    FenceAsyncProxy();
    SyncWarp();
    if (LaneIndex() == 0) {
      TmaReduceAdd(map, tile, {0});
      BulkCommit();
      BulkWait<0>();
    }
  });
  REQUIRE(std::string(result.message()) == "");
  for (int i = 0; i < 32; ++i) CHECK(sums[i] == static_cast<float>(1 + 2 * i));
}

TEST_CASE("bulk wait_group<1> lets the newest group run on and no other") {
  GlobalArray<float> out(64);
  const TensorMap map = MakeTensorMap({.data = out.data(),
                                       .dtype = DType::kF32,
                                       .rank = 1,
                                       .size = {64},
                                       .stride = {1},
                                       .box = {32}});
  bool second_was_late = false;
  for (uint64_t seed = 0; seed < 16; ++seed) {
    std::fill(out.begin(), out.end(), 0.0f);
    const LaunchResult result = RunBody<32>(256, {.seed = seed}, [&](unsigned char* shared) {
      auto* tile = reinterpret_cast<float*>(shared);
      Store(tile + LaneIndex(), 5.0f);
      Store(tile + 32 + LaneIndex(), 5.0f);
      FenceAsyncProxy();
      SyncWarp();
      if (LaneIndex() != 0) return;
      TmaStore(map, tile, {0});
      BulkCommit();
      TmaStore(map, tile + 32, {32});
      BulkCommit();
      BulkWait<1>();
      CHECK(out[0] == 5.0f);
      second_was_late = second_was_late || out[32] == 0.0f;
      BulkWait<0>();
      CHECK(out[63] == 5.0f);
    });
    CHECK(std::string(result.message()) == "");
  }
  CHECK(second_was_late);
}

TEST_CASE("a tensor map that the driver would refuse is refused") {
  const Numbered tensor;
  const auto refused = [](TensorMapShape shape) -> std::string {
    try {
      MakeTensorMap(shape);
    } catch (const Fault& fault) {
      CHECK(fault.kind == FaultKind::kTensorMap);
      return fault.message;
    }
    return "accepted";
  };
  const TensorMapShape good = ShapeOf(tensor.Map(64, 8, Swizzle::k128Bytes));
  CHECK(refused(good) == "accepted");
  TensorMapShape bad = good;
  bad.rank = 6;
  CHECK(refused(bad) == "tensor map: rank 6, expected 1 to 5");
  bad = good;
  bad.data = tensor.data.data() + 1;
  CHECK(refused(bad) == "tensor map: data is not 16-byte aligned");
  bad = good;
  bad.stride[1] = 81;
  CHECK(refused(bad) == "tensor map: stride[1] is 162 bytes, expected a multiple of 16 below 2^40");
  bad = good;
  bad.box[2] = 257;
  CHECK(refused(bad) == "tensor map: box[2] is 257, expected 1 to 256");
  bad = good;
  bad.box[0] = 72;
  CHECK(refused(bad) == "tensor map: box rows of 144 bytes exceed the swizzle span of 128");
  bad = good;
  bad.size[0] = 0;
  CHECK(refused(bad) == "tensor map: size[0] is 0, expected 1 to 2^32");
  bad = good;
  bad.box[0] = 4;
  CHECK(refused(bad) == "tensor map: box rows of 8 bytes, expected 16 n");
  bad = good;
  bad.stride[0] = 2;
  CHECK(refused(bad) == "tensor map: stride[0] must be 1");
}

}  // namespace
}  // namespace varlen::simt::testing
