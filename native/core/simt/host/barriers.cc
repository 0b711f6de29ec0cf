#include "core/simt/host/barriers.h"

#include <string>

#include "core/simt/host/block.h"

namespace varlen::simt {

NamedBarriers::Barrier& NamedBarriers::Count(int id, int threads, const char* what,
                                             const Site& site) {
  if (id < 0 || id >= static_cast<int>(barriers_.size())) {
    Stop(FaultKind::kBarrier, std::string(what) + " " + std::to_string(id) + ", expected 0 to 15",
         site);
  }
  if (threads <= 0 || threads % kWarpSize != 0 || threads > Block::Current().threads()) {
    Stop(FaultKind::kBarrier,
         std::string(what) + " for " + std::to_string(threads) +
             " threads, expected whole warps of the block",
         site);
  }
  Barrier& barrier = barriers_[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) {
    Stop(FaultKind::kBarrier,
         std::string(what) + " " + std::to_string(id) + " for " + std::to_string(threads) +
             " threads, others came for " + std::to_string(barrier.expected),
         site);
  }
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.rounds;
  }
  return barrier;
}

void NamedBarriers::Sync(int id, int threads, const char* what, const Site& site) {
  Block& block = Block::Current();
  const uint64_t round = id >= 0 && id < 16 ? barriers_[id].rounds : 0;
  const Barrier& barrier = Count(id, threads, what, site);
  // Parked even by the last arrival, so that all lanes of its warp come through together.
  const Meeting meeting{&barrier};
  block.WaitUntil(
      what, &meeting, [&] { return barrier.rounds != round; },
      [&] {
        return "barrier " + std::to_string(id) + ", " + std::to_string(barrier.arrived) + " of " +
               std::to_string(barrier.expected) + " threads arrived";
      },
      site);
}

void NamedBarriers::Arrive(int id, int threads, const Site& site) {
  Count(id, threads, "bar.arrive", site);
}

MBarriers::Barrier& MBarriers::At(uint64_t* barrier, const char* what, const Site& site) {
  const SharedMemory& shared = Block::Current().shared;
  shared.CheckRange(barrier, 8, 8, what, site);
  const auto found = barriers_.find(shared.Offset(barrier));
  if (found == barriers_.end()) {
    Stop(FaultKind::kBarrier,
         std::string(what) + " at shared offset " + std::to_string(shared.Offset(barrier)) +
             ", which was never initialised",
         site);
  }
  return found->second;
}

void MBarriers::Init(uint64_t* barrier, int count, const Site& site) {
  Block& block = Block::Current();
  block.shared.CheckRange(barrier, 8, 8, "mbarrier.init", site);
  if (count < 1 || count >= 1 << 20) {
    Stop(FaultKind::kBarrier,
         "mbarrier.init for " + std::to_string(count) + " arrivals, expected 1 to 2^20 - 1", site);
  }
  const auto [at, fresh] = barriers_.try_emplace(block.shared.Offset(barrier));
  if (!fresh) Stop(FaultKind::kBarrier, "mbarrier.init of a live barrier", site);
  at->second = {count, count, 0, 0, block.current_thread()};
}

void MBarriers::FenceInit(int thread) {
  for (auto& [offset, barrier] : barriers_) {
    if (barrier.initialiser == thread) barrier.initialiser = -1;
  }
}

void MBarriers::Invalidate(uint64_t* barrier, const Site& site) {
  At(barrier, "mbarrier.inval", site);
  barriers_.erase(Block::Current().shared.Offset(barrier));
}

void MBarriers::EndPhase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
}

void MBarriers::Arrive(uint64_t* barrier, int64_t expected_bytes, const char* what,
                       const Site& site) {
  Barrier& at = At(barrier, what, site);
  if (at.pending == 0) {
    Stop(FaultKind::kBarrier,
         std::string(what) + ": more than " + std::to_string(at.count) + " arrivals in one phase",
         site);
  }
  at.bytes += expected_bytes;
  --at.pending;
  EndPhase(at);
}

bool MBarriers::Test(uint64_t* barrier, int parity, const Site& site) {
  // Parity p asks whether the phase of that parity is over: true at once for the one before the
  // first.
  return static_cast<int>(At(barrier, "mbarrier.try_wait", site).phase % 2) != parity;
}

void MBarriers::Wait(uint64_t* barrier, int parity, const Site& site) {
  if (parity != 0 && parity != 1) {
    Stop(FaultKind::kBarrier,
         "mbarrier.try_wait for parity " + std::to_string(parity) + ", expected 0 or 1", site);
  }
  const Barrier& at = At(barrier, "mbarrier.try_wait", site);
  Block& block = Block::Current();
  block.WaitUntil(
      "mbarrier.try_wait", nullptr, [&] { return static_cast<int>(at.phase % 2) != parity; },
      [&] {
        return "shared offset " + std::to_string(block.shared.Offset(barrier)) + ", parity " +
               std::to_string(parity) + ", phase " + std::to_string(at.phase) + ", " +
               std::to_string(at.pending) + " of " + std::to_string(at.count) + " arrivals and " +
               std::to_string(at.bytes) + " bytes outstanding";
      },
      site);
}

int64_t MBarriers::ForCopy(uint64_t* barrier, const Site& site) {
  const Barrier& at = At(barrier, "cp.async.bulk", site);
  if (at.initialiser >= 0) {
    Stop(FaultKind::kBarrier,
         "cp.async.bulk reports to an mbarrier that thread " + std::to_string(at.initialiser) +
             " initialised without a fence.mbarrier_init after it",
         site);
  }
  return Block::Current().shared.Offset(barrier);
}

void MBarriers::CompleteBytes(int64_t offset, int64_t bytes) {
  Barrier& at = barriers_.at(offset);
  at.bytes -= bytes;
  EndPhase(at);
}

}  // namespace varlen::simt
