#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/simt/host/fault.h"
#include "core/simt/tensor_map.h"

namespace varlen::simt {

class Block;

// The emulator's tensor map. Refuses what the driver would refuse.
TensorMap MakeTensorMap(const TensorMapShape& shape);
TensorMapShape ShapeOf(const TensorMap& map);

// Where byte `offset` of an unswizzled tile lies in shared memory.
inline int64_t Swizzled(int64_t offset, Swizzle swizzle) {
  const int64_t mask = SwizzleSpan(swizzle) / 16 - 1;
  return offset ^ (((offset >> 7) & mask) << 4);
}

// What a block has asked for and not got.
//
// cp.async: the destination is poisoned at issue and filled by the wait_group that covers it, never
// earlier. TMA (cp.async.bulk.tensor): loads and stores land one by one at moments drawn by the
// scheduler; a load then reports its bytes to its mbarrier.
class AsyncCopies {
 public:
  void Begin(int threads);

  // cp.async of `bytes` bytes, the first `valid` from `source` and zeros after them.
  void Issue(int64_t offset, const void* source, int bytes, int valid, const Site& site);
  void Commit();
  void Wait(int groups);  // until at most this many of the newest groups are pending

  using Coordinates = std::array<int32_t, kMaxTensorMapRank>;
  enum class Bulk : uint8_t { kLoad, kStore, kAdd };
  void IssueBulk(Bulk kind, const TensorMapShape& map, int64_t offset, int64_t mbarrier,
                 const Coordinates& at, const Site& site);
  void CommitBulk();
  void WaitBulk(int groups, const Site& site);

  bool pending() const { return !bulk_.empty(); }
  // Carries out one of the pending bulk copies, drawn at random.
  bool LandOne(Block& block);
  std::string UnderWay() const;

 private:
  struct Copy {
    int64_t offset;
    const void* source;
    int bytes, valid;
  };
  struct BulkCopy {
    Bulk kind;
    TensorMapShape map;
    int64_t offset;
    int64_t mbarrier;
    Coordinates at;
    int thread;
    uint64_t group;  // of its thread; stores only
    Site site;
  };
  struct ThreadState {
    std::vector<Copy> copies;  // oldest first
    std::vector<size_t> ends;  // of the committed groups, as indices into copies
    uint64_t bulk_group = 0;   // the open one
  };
  void Land(Block& block, const BulkCopy& copy);

  std::vector<ThreadState> threads_;
  std::vector<BulkCopy> bulk_;
};

}  // namespace varlen::simt
