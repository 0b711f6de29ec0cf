#include "core/simt/host/register_pool.h"

#include <algorithm>
#include <string>

#include "core/simt/host/block.h"

namespace varlen::simt {
namespace {

constexpr int kRegistersPerSm = 65536;

struct Change {
  int registers;
  Site site;
};

void CheckCount(int registers, const char* what, const Site& site) {
  if (registers >= 24 && registers <= 256 && registers % 8 == 0) return;
  Stop(FaultKind::kRegisters,
       std::string(what) + " to " + std::to_string(registers) +
           ", expected a multiple of 8 from 24 to 256",
       site);
}

void Nothing(Block&, int, void* const*) {}
void NothingElse(Block&, int, void* const*) {}

}  // namespace

// 65536 / threads, rounded down to 8: what __launch_bounds__(threads, 1) leaves the compiler.
RegisterPool::RegisterPool(int threads)
    : per_thread_at_entry_(std::min(248, kRegistersPerSm / threads / 8 * 8)),
      held_(threads / kWarpgroupSize) {}

void RegisterPool::Begin() {
  free_ = 0;
  std::fill(held_.begin(), held_.end(), per_thread_at_entry_);
}

void RegisterPool::Decrease(int registers, const Site& site) {
  CheckCount(registers, "setmaxnreg.dec", site);
  Block& block = Block::Current();
  const int thread = block.current_thread();
  block.Meet("setmaxnreg.dec", kWarpgroupSize, &Nothing, nullptr, site);
  if (thread % kWarpgroupSize != 0) return;
  int& held = held_[thread / kWarpgroupSize];
  if (registers > held) {
    Stop(FaultKind::kRegisters,
         "setmaxnreg.dec to " + std::to_string(registers) + " from " + std::to_string(held), site);
  }
  free_ += held - registers;
  held = registers;
}

void RegisterPool::Increase(int registers, const Site& site) {
  CheckCount(registers, "setmaxnreg.inc", site);
  Block& block = Block::Current();
  const int thread = block.current_thread();
  int& held = held_[thread / kWarpgroupSize];
  if (registers < held) {
    Stop(FaultKind::kRegisters,
         "setmaxnreg.inc to " + std::to_string(registers) + " from " + std::to_string(held), site);
  }
  if (thread % kWarpgroupSize == 0) {
    block.WaitUntil(
        "setmaxnreg.inc", nullptr, [&] { return free_ >= registers - held; },
        [&] {
          return std::to_string(registers - held) + " registers per thread wanted, " +
                 std::to_string(free_) + " free";
        },
        site);
    free_ -= registers - held;
    held = registers;
  }
  block.Meet("setmaxnreg.inc", kWarpgroupSize, &NothingElse, nullptr, site);
}

}  // namespace varlen::simt
