#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "core/simt/host/fault.h"

namespace varlen::simt {

// bar.sync and bar.arrive: 16 per block, each counting threads. __syncthreads is number 0 with all
// threads.
class NamedBarriers {
 public:
  void Begin() { barriers_ = {}; }
  void Sync(int id, int threads, const char* what, const Site& site);
  void Arrive(int id, int threads, const Site& site);

 private:
  struct Barrier {
    int expected = 0;  // of the current round; 0: nobody came yet
    int arrived = 0;
    uint64_t rounds = 0;
  };
  Barrier& Count(int id, int threads, const char* what, const Site& site);

  std::array<Barrier, 16> barriers_;
};

// mbarrier objects in shared memory: a phase ends when no arrival and no byte is outstanding.
class MBarriers {
 public:
  void Begin() { barriers_.clear(); }
  void Init(uint64_t* barrier, int count, const Site& site);
  void FenceInit(int thread);  // fence.mbarrier_init or fence.proxy.async by the initialiser
  void Invalidate(uint64_t* barrier, const Site& site);
  void Arrive(uint64_t* barrier, int64_t expected_bytes, const char* what, const Site& site);
  void Wait(uint64_t* barrier, int parity, const Site& site);
  bool Test(uint64_t* barrier, int parity, const Site& site);
  // The offset by which an asynchronous copy will report to this barrier.
  int64_t ForCopy(uint64_t* barrier, const Site& site);
  void CompleteBytes(int64_t offset, int64_t bytes);

 private:
  struct Barrier {
    int count = 0;
    int pending = 0;    // arrivals still to come in this phase
    int64_t bytes = 0;  // expected and not yet delivered
    uint64_t phase = 0;
    int initialiser = -1;  // until it fences
  };
  Barrier& At(uint64_t* barrier, const char* what, const Site& site);
  static void EndPhase(Barrier& barrier);

  std::map<int64_t, Barrier> barriers_;  // by shared offset
};

}  // namespace varlen::simt
