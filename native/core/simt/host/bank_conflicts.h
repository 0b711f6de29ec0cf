#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/simt/host/fault.h"

namespace varlen::simt {

// Shared memory has 32 banks of 4 bytes; a request moves 128 bytes per wavefront when no two of its
// addresses want different words of one bank.
struct BankCount {
  Site site;
  int64_t requests = 0;    // instructions of one warp
  int64_t wavefronts = 0;  // what they took
  int64_t ideal = 0;       // what they would take without conflicts
};

// Counts wavefronts per line of the kernel. Collectives (ldmatrix) know their 32 addresses; the
// ordinary accesses of a warp's lanes are matched by line and order between two collectives.
class BankConflicts {
 public:
  void Enable() { enabled_ = true; }
  bool enabled() const { return enabled_; }
  void Begin(int threads);

  // One access by one lane.
  void Note(int thread, int64_t offset, int bytes, const Site& site);
  // The lanes of `warp` have met: the accesses before it belong together.
  void EndStretch(int warp);
  // A whole request: offsets[lane] of the lanes in the mask, `bytes` each.
  void Request(const int64_t* offsets, uint32_t active, int bytes, const Site& site);

  const std::vector<BankCount>& counts() const { return counts_; }

 private:
  struct Access {
    int lane;
    int64_t offset;
    int bytes;
    Site site;
  };
  BankCount& At(const Site& site);

  bool enabled_ = false;
  std::vector<std::vector<Access>> stretches_;  // per warp
  std::vector<BankCount> counts_;
};

}  // namespace varlen::simt
