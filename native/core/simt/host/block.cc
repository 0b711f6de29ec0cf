#include "core/simt/host/block.h"

#include <algorithm>
#include <array>
#include <exception>
#include <numeric>
#include <utility>

namespace varlen::simt {
namespace {

thread_local Block* current_block = nullptr;

std::string Threads(int first, int last) {
  if (first == last) return "thread " + std::to_string(first);
  return "threads " + std::to_string(first) + "-" + std::to_string(last);
}

std::string Reason(const Wait& wait) {
  if (wait.kind == Wait::Kind::kExited) return "exited";
  std::string text = wait.what;
  if (wait.kind == Wait::Kind::kCondition) text += " (" + (*wait.describe)() + ")";
  return text + " at " + Describe(wait.site);
}

}  // namespace

Block& Block::Current() { return *current_block; }

Block::Block(int threads, int64_t shared_bytes, int64_t grid)
    : shared(shared_bytes),
      registers(threads),
      grid_(grid),
      stacks_(threads),
      fibers_(threads),
      waits_(threads),
      entries_(threads),
      warp_order_(threads / kWarpSize) {
  std::iota(warp_order_.begin(), warp_order_.end(), 0);
}

void Block::Begin(int64_t index, uint64_t seed, const FunctionRef<void>& body) {
  index_ = index;
  exited_ = 0;
  body_ = &body;
  std::seed_seq mixed{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)};
  random_.seed(mixed);
  shared.Poison();
  banks.Begin(threads());
  barriers.Begin();
  mbarriers.Begin();
  copies.Begin(threads());
  wgmma.Begin(threads(), random_() % 2 == 0);
  registers.Begin();
  for (int thread = 0; thread < threads(); ++thread) {
    entries_[thread] = {this, thread};
    waits_[thread] = Wait{};
    fibers_[thread].Start(stacks_.stack(thread), FiberStacks::bytes(), &RunThread,
                          &entries_[thread]);
  }
}

void Block::RunThread(void* argument) {
  const auto [block, thread] = *static_cast<ThreadEntry*>(argument);
  try {
    (*block->body_)();
  } catch (...) {  // must not leave the fiber's stack; the scheduler throws it again
    block->failure_ = std::current_exception();
  }
  block->waits_[thread].kind = Wait::Kind::kExited;
  ++block->exited_;
  block->fibers_[thread].Finish();
}

void Block::Meet(const char* what, int group, Perform perform, void* operands, const Site& site) {
  Wait& wait = waits_[current_];
  wait.kind = Wait::Kind::kCollective;
  wait.what = what;
  wait.site = site;
  wait.aligned = true;
  wait.meeting = {reinterpret_cast<const void*>(perform), site.line(), site.column()};
  wait.group = group;
  wait.perform = perform;
  wait.operands = operands;
  fibers_[current_].Suspend();
}

void Block::WaitUntil(const char* what, const Meeting* meeting, const FunctionRef<bool>& ready,
                      const FunctionRef<std::string>& describe, const Site& site) {
  Wait& wait = waits_[current_];
  wait.kind = Wait::Kind::kCondition;
  wait.what = what;
  wait.site = site;
  wait.aligned = meeting != nullptr;
  wait.meeting = meeting != nullptr ? *meeting : Meeting{};
  wait.ready = &ready;
  wait.describe = &describe;
  fibers_[current_].Suspend();
}

bool Block::Sweep() {
  current_block = this;
  bool moved = false;
  std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
  for (int warp : warp_order_) {
    moved |= RunWarp(warp);
    // Copies land between any two warps, not only between sweeps.
    if (copies.pending() && random_() % 8 == 0) moved |= copies.LandOne(*this);
  }
  for (int first = 0; first + kWarpgroupSize <= threads(); first += kWarpgroupSize) {
    moved |= TryMeeting(first, kWarpgroupSize);
  }
  if (!moved && copies.pending()) moved = copies.LandOne(*this);
  return moved;
}

bool Block::RunWarp(int warp) {
  const int first = warp * kWarpSize;
  bool moved = false;
  for (;;) {
    bool ran = false;
    // Within a warp no order of lanes is promised either.
    const auto start = static_cast<int>(random_() % kWarpSize);
    for (int i = 0; i < kWarpSize; ++i) {
      const int thread = first + (start + i) % kWarpSize;
      Wait& wait = waits_[thread];
      if (wait.kind == Wait::Kind::kCondition && (*wait.ready)()) wait.kind = Wait::Kind::kNothing;
      if (wait.kind != Wait::Kind::kNothing) continue;
      ran = true;
      current_ = thread;
      fibers_[thread].Resume();
      if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
    }
    moved |= ran;
    if (CheckConvergence(warp)) banks.EndStretch(warp);
    if (!TryMeeting(first, kWarpSize)) {
      if (!ran) return moved;
      continue;
    }
    moved = true;
    if (random_() % 4 == 0) return true;  // other warps get their turn at any point
  }
}

bool Block::CheckConvergence(int warp) const {
  const Wait* begin = &waits_[warp * kWarpSize];
  const Wait* aligned = nullptr;
  for (const Wait* wait = begin; wait != begin + kWarpSize; ++wait) {
    if (wait->kind != Wait::Kind::kExited && wait->kind != Wait::Kind::kNothing && wait->aligned) {
      aligned = wait;
      break;
    }
  }
  if (aligned == nullptr) {
    return std::all_of(begin, begin + kWarpSize,
                       [](const Wait& wait) { return wait.kind == Wait::Kind::kExited; });
  }
  int met = 0;
  for (const Wait* wait = begin; wait != begin + kWarpSize; ++wait) {
    const bool exited = wait->kind == Wait::Kind::kExited;
    if (!exited && (!wait->aligned || wait->kind == Wait::Kind::kNothing)) continue;
    if (!exited && wait->meeting == aligned->meeting) {
      ++met;
      continue;
    }
    std::string text =
        "warp " + std::to_string(warp) + " of block " + std::to_string(index_) + " does not meet:";
    for (int lane = 0; lane < kWarpSize;) {
      const std::string reason = Reason(begin[lane]);
      int last = lane;
      while (last + 1 < kWarpSize && Reason(begin[last + 1]) == reason) ++last;
      text.append("\n  lanes ").append(std::to_string(lane)).append("-");
      text.append(std::to_string(last)).append(": ").append(reason);
      lane = last + 1;
    }
    throw Fault(FaultKind::kDivergence, text);
  }
  return met == kWarpSize;
}

bool Block::TryMeeting(int first_thread, int group) {
  const Wait& leader = waits_[first_thread];
  for (int i = 0; i < group; ++i) {
    const Wait& wait = waits_[first_thread + i];
    if (wait.kind != Wait::Kind::kCollective || wait.group != group) return false;
    if (wait.meeting == leader.meeting) continue;
    throw Fault(FaultKind::kDivergence, Threads(first_thread, first_thread + group - 1) +
                                            " of block " + std::to_string(index_) +
                                            " do not meet: " + Reason(leader) + " and " +
                                            Reason(wait));
  }
  std::array<void*, kWarpgroupSize> operands{};
  for (int i = 0; i < group; ++i) operands[i] = waits_[first_thread + i].operands;
  current_ = first_thread;
  leader.perform(*this, first_thread, operands.data());
  for (int i = 0; i < group; ++i) waits_[first_thread + i].kind = Wait::Kind::kNothing;
  return true;
}

std::string Block::Waits() const {
  std::string text = "block " + std::to_string(index_) + ":";
  for (int thread = 0; thread < threads();) {
    const std::string reason = Reason(waits_[thread]);
    int last = thread;
    while (last + 1 < threads() && Reason(waits_[last + 1]) == reason) ++last;
    text.append("\n  ").append(Threads(thread, last)).append(": ").append(reason);
    thread = last + 1;
  }
  return text;
}

void Block::CheckExit() const {
  std::string under_way = copies.UnderWay();
  if (under_way.empty()) under_way = wgmma.UnderWay();
  if (under_way.empty()) return;
  throw Fault(FaultKind::kExit, "block " + std::to_string(index_) + " ended with " + under_way);
}

}  // namespace varlen::simt
