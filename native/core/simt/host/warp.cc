#include <cstdint>

#include "core/simt/host.h"

// Shuffles, votes, the warp barrier, and the checks of ordinary accesses.
namespace varlen::simt {
namespace {

struct Exchange {
  uint32_t value;
  int argument;
  uint32_t result;
};

// Source lane of each form; a source outside the warp leaves the lane its own value.
template <class SourceLane>
void PerformShuffle(void* const* operands, const SourceLane& source_lane) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto& own = *static_cast<Exchange*>(operands[lane]);
    const int source = source_lane(lane, own.argument);
    own.result = source < 0 || source >= kWarpSize
                     ? own.value
                     : static_cast<const Exchange*>(operands[source])->value;
  }
}

void PerformXor(Block&, int, void* const* operands) {
  PerformShuffle(operands, [](int lane, int mask) { return lane ^ mask; });
}
void PerformIndex(Block&, int, void* const* operands) {
  PerformShuffle(operands, [](int, int lane) { return lane & (kWarpSize - 1); });
}
void PerformUp(Block&, int, void* const* operands) {
  PerformShuffle(operands, [](int lane, int delta) { return lane - delta; });
}
void PerformBallot(Block&, int, void* const* operands) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    votes |= static_cast<const Exchange*>(operands[lane])->value << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    static_cast<Exchange*>(operands[lane])->result = votes;
  }
}
void PerformSync(Block&, int, void* const*) {}

uint32_t Meet(const char* what, Perform perform, uint32_t value, int argument, const Site& site) {
  Exchange exchange{value, argument, 0};
  Block::Current().Meet(what, kWarpSize, perform, &exchange, site);
  return exchange.result;
}

}  // namespace

namespace internal {

uint32_t ShuffleXorBits(uint32_t value, int mask, const Site& site) {
  return Meet("shfl.sync.bfly", &PerformXor, value, mask, site);
}
uint32_t ShuffleIndexBits(uint32_t value, int lane, const Site& site) {
  return Meet("shfl.sync.idx", &PerformIndex, value, lane, site);
}
uint32_t ShuffleUpBits(uint32_t value, int delta, const Site& site) {
  return Meet("shfl.sync.up", &PerformUp, value, delta, site);
}

void CheckLoad(const void* pointer, int bytes, const Site& site) {
  Block& block = Block::Current();
  if (!block.shared.Near(pointer)) return CheckGlobal(pointer, bytes, bytes, "load", site);
  block.shared.CheckRange(pointer, bytes, bytes, "load", site);
  block.shared.CheckRead(pointer, bytes, "load", site);
  block.banks.Note(block.current_thread(), block.shared.Offset(pointer), bytes, site);
}

void CheckStore(void* pointer, int bytes, const Site& site) {
  Block& block = Block::Current();
  if (!block.shared.Near(pointer)) return CheckGlobal(pointer, bytes, bytes, "store", site);
  block.shared.CheckRange(pointer, bytes, bytes, "store", site);
  block.shared.NoteWrite(pointer, bytes, "store", site);
  block.banks.Note(block.current_thread(), block.shared.Offset(pointer), bytes, site);
}

}  // namespace internal

uint32_t Ballot(bool predicate, Site site) {
  return Meet("vote.sync.ballot", &PerformBallot, predicate ? 1 : 0, 0, site);
}

void SyncWarp(Site site) { Meet("bar.warp.sync", &PerformSync, 0, 0, site); }

}  // namespace varlen::simt
