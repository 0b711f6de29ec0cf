#include <algorithm>
#include <string>

#include "core/simt/host_sm90a.h"

namespace varlen::simt {
namespace {

void PerformElect(Block&, int, void* const* operands) {
  for (int lane = 0; lane < kWarpSize; ++lane) *static_cast<bool*>(operands[lane]) = lane == 0;
}

void PerformWgmma(Block& block, int first_thread, void* const* operands) {
  block.wgmma.Issue(block, first_thread, reinterpret_cast<WgmmaOperands* const*>(operands));
}
void PerformFence(Block& block, int first_thread, void* const*) {
  block.wgmma.Fence(first_thread / kWarpgroupSize);
}
void PerformCommit(Block& block, int first_thread, void* const*) {
  block.wgmma.Commit(first_thread / kWarpgroupSize);
}
void PerformWait(Block& block, int first_thread, void* const* operands) {
  block.wgmma.Wait(block, first_thread / kWarpgroupSize, *static_cast<const int*>(operands[0]));
}

// A swizzle pattern repeats after 8 rows of its span.
int64_t TileAlignment(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 128 : 8 * SwizzleSpan(swizzle);
}

}  // namespace

bool ElectOne(Site site) {
  bool chosen = false;
  Block::Current().Meet("elect.sync", kWarpSize, &PerformElect, &chosen, site);
  return chosen;
}

uint64_t MatrixDescriptor(const void* tile, int leading, int stride, Swizzle swizzle, Site site) {
  const SharedMemory& shared = Block::Current().shared;
  shared.CheckRange(tile, 16, 16, "wgmma descriptor", site);
  if (leading % 16 != 0 || stride % 16 != 0 || leading < 0 || stride < 0 || leading >= 1 << 18 ||
      stride >= 1 << 18) {
    Stop(FaultKind::kDescriptor,
         "offsets " + std::to_string(leading) + " and " + std::to_string(stride) +
             ", expected multiples of 16 below 2^18",
         site);
  }
  const uint64_t layout = swizzle == Swizzle::kNone       ? 0
                          : swizzle == Swizzle::k128Bytes ? 1
                          : swizzle == Swizzle::k64Bytes  ? 2
                                                          : 3;
  return static_cast<uint64_t>(shared.Offset(tile) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         layout << 62;
}

void WgmmaFence(Site site) {
  Block::Current().Meet("wgmma.fence", kWarpgroupSize, &PerformFence, nullptr, site);
}
void WgmmaCommit(Site site) {
  Block::Current().Meet("wgmma.commit_group", kWarpgroupSize, &PerformCommit, nullptr, site);
}

namespace internal {

void Wgmma(WgmmaOperands& operands, const Site& site) {
  if (operands.n % 8 != 0 || operands.n < 8 || operands.n > 256) {
    Stop(FaultKind::kDescriptor, "wgmma with N = " + std::to_string(operands.n), site);
  }
  Block::Current().Meet("wgmma.mma_async", kWarpgroupSize, &PerformWgmma, &operands, site);
}

void WgmmaWait(int groups, const Site& site) {
  Block::Current().Meet("wgmma.wait_group", kWarpgroupSize, &PerformWait, &groups, site);
}

void IssueBulk(AsyncCopies::Bulk kind, const TensorMap& map, const void* shared, uint64_t* barrier,
               int rank, const int32_t* at, const Site& site) {
  Block& block = Block::Current();
  const TensorMapShape shape = ShapeOf(map);
  if (rank != shape.rank) {
    Stop(FaultKind::kTensorMap,
         std::to_string(rank) + " coordinates for a map of rank " + std::to_string(shape.rank),
         site);
  }
  if (kind == AsyncCopies::Bulk::kAdd && shape.dtype != DType::kF32) {
    Stop(FaultKind::kTensorMap, "reduce-add of a type that is not float32", site);
  }
  block.shared.CheckRange(shared, shape.box_bytes(), TileAlignment(shape.swizzle), "TMA tile",
                          site);
  const int64_t reports_to = barrier != nullptr ? block.mbarriers.ForCopy(barrier, site) : -1;
  AsyncCopies::Coordinates coordinates{};
  std::copy_n(at, rank, coordinates.begin());
  block.copies.IssueBulk(kind, shape, block.shared.Offset(shared), reports_to, coordinates, site);
}

}  // namespace internal
}  // namespace varlen::simt
