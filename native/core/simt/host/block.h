#pragma once

#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "core/simt/host/async_copies.h"
#include "core/simt/host/bank_conflicts.h"
#include "core/simt/host/barriers.h"
#include "core/simt/host/fault.h"
#include "core/simt/host/fiber.h"
#include "core/simt/host/function_ref.h"
#include "core/simt/host/register_pool.h"
#include "core/simt/host/shared_memory.h"
#include "core/simt/host/wgmma_queue.h"

namespace varlen::simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kWarpgroupSize = 128;
inline constexpr int kMaxThreads = 1024;

class Block;

// Computes a collective for its lanes, in thread order: operands[i] is what lane i brought.
using Perform = void (*)(Block& block, int first_thread, void* const* operands);

// What makes two lanes wait at "the same" place: the operation (or barrier object) and, for
// collectives, the line of the kernel.
struct Meeting {
  const void* what = nullptr;
  uint32_t line = 0, column = 0;
  bool operator==(const Meeting&) const = default;
};

// Why a thread does not run.
struct Wait {
  enum class Kind : uint8_t { kNothing, kCollective, kCondition, kExited };

  Kind kind = Kind::kNothing;
  const char* what = "";
  Site site;
  bool aligned = false;  // every lane of the warp must come to the same meeting
  Meeting meeting;
  // kCollective
  int group = kWarpSize;  // threads that meet
  Perform perform = nullptr;
  void* operands = nullptr;
  // kCondition
  const FunctionRef<bool>* ready = nullptr;
  const FunctionRef<std::string>* describe = nullptr;
};

// One thread block: a fiber per thread, and the scheduler that moves them on. The order in which
// warps run, the lane a warp begins with and the moment an asynchronous copy lands are drawn from a
// seeded generator: a kernel that is right only in one order fails on some seed.
class Block {
 public:
  Block(int threads, int64_t shared_bytes, int64_t grid);

  // The block whose thread runs on this host thread.
  static Block& Current();

  // Makes this the block `index` of the grid, all threads at the start of `body`.
  void Begin(int64_t index, uint64_t seed, const FunctionRef<void>& body);
  // Lets every thread run until it waits, once. True when anything moved.
  bool Sweep();
  bool finished() const { return exited_ == threads(); }
  // After the last thread: nothing asynchronous may be under way.
  void CheckExit() const;
  // Every thread's wait reason, equal ones merged.
  std::string Waits() const;

  // --- called by the operations, from inside a thread ---

  // Parks the running thread until all threads of its warp or warpgroup are here.
  void Meet(const char* what, int group, Perform perform, void* operands, const Site& site);
  // Parks it until ready(); `meeting` is not null for operations that a whole warp executes.
  void WaitUntil(const char* what, const Meeting* meeting, const FunctionRef<bool>& ready,
                 const FunctionRef<std::string>& describe, const Site& site);

  int threads() const { return static_cast<int>(waits_.size()); }
  int64_t index() const { return index_; }
  int64_t grid() const { return grid_; }
  int current_thread() const { return current_; }
  std::mt19937_64& random() { return random_; }

  SharedMemory shared;
  BankConflicts banks;
  NamedBarriers barriers;
  MBarriers mbarriers;
  AsyncCopies copies;
  WgmmaQueue wgmma;
  RegisterPool registers;

 private:
  static void RunThread(void* argument);
  bool RunWarp(int warp);
  // Stops when lanes wait for each other at different places; true when all 32 wait at one.
  bool CheckConvergence(int warp) const;
  bool TryMeeting(int first_thread, int group);

  struct ThreadEntry {
    Block* block;
    int thread;
  };

  int64_t grid_;
  int64_t index_ = 0;
  int current_ = 0;
  int exited_ = 0;
  std::mt19937_64 random_;
  const FunctionRef<void>* body_ = nullptr;
  std::exception_ptr failure_;
  FiberStacks stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Wait> waits_;
  std::vector<ThreadEntry> entries_;
  std::vector<int> warp_order_;
};

}  // namespace varlen::simt
