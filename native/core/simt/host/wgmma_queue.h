#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/simt/host/fault.h"

namespace varlen::simt {

class Block;

// One thread's part of wgmma.mma_async.m64nNk16. A comes from shared memory (descriptor) or from
// four registers per thread; D is always in registers.
struct WgmmaOperands {
  float* d = nullptr;  // [n / 2]
  int n = 0;
  DType dtype = DType::kBF16;
  bool accumulate = true;
  bool a_in_registers = false;
  std::array<uint32_t, 4> a{};
  uint64_t a_descriptor = 0;
  uint64_t b_descriptor = 0;
  bool transpose_a = false;  // MN-major
  bool transpose_b = false;
  Site site;
};

// The asynchronous matrix products of each warpgroup. A block carries them out either at issue or
// at the last legal moment (the wait_group that covers them), drawn once per block: the first
// catches operands that were not there yet, the second operands and registers given up too early.
// Until then the accumulators hold NaN; a kernel that changed them meanwhile is stopped.
class WgmmaQueue {
 public:
  void Begin(int threads, bool late);

  void Issue(Block& block, int first_thread, WgmmaOperands* const* operands);
  void Fence(int warpgroup) { groups_[warpgroup].fenced = true; }
  void Commit(int warpgroup);
  void Wait(Block& block, int warpgroup, int pending);
  std::string UnderWay() const;

 private:
  struct Accumulator {
    std::vector<float*> registers;  // per thread
    std::vector<float> values;      // [128, n / 2]
    int n = 0;
    int users = 0;  // jobs that still have to run
    Site site;
  };
  struct Job {
    WgmmaOperands common;
    std::vector<std::array<uint32_t, 4>> a;  // per thread, when in registers
    float* accumulator;                      // the first thread's d
  };
  struct Warpgroup {
    bool fenced = false;
    std::vector<Job> open;
    std::deque<std::vector<Job>> committed;
    std::vector<Accumulator> accumulators;  // late only
  };
  Accumulator& At(Warpgroup& group, const Job& job);

  bool late_ = false;
  std::vector<Warpgroup> groups_;
};

}  // namespace varlen::simt
