#pragma once

#include <sched.h>

#include <chrono>

// Waiting without sleep, for a moment: to wake a thread takes longer than most answers do.
namespace varlen::dist {

// About what two wake-ups take. A rank that steps every 100 ms spends a thousandth of its time
// here.
inline constexpr std::chrono::microseconds kSpin(50);

// True once `ready()` is; false when it is not for kSpin. Other threads that could run go first.
template <class Ready>
bool SpinUntil(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!ready()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    sched_yield();
  }
  return true;
}

}  // namespace varlen::dist
