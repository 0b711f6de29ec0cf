#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace varlen::dist {

// Calls that wait for Gloo's I/O thread, up to 10 ms each, or for a peer: several at once.
inline constexpr int kHelpers = 16;

// `run(i)` for i in 0 .. count - 1; helper h takes h, h + kHelpers, ... in this order. When one
// throws, `on_failure()` is called at once and the first exception thrown when all have ended.
template <class Run, class OnFailure>
void WithHelpers(int count, const Run& run, const OnFailure& on_failure) {
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> helpers;
  const int used = std::min(kHelpers, count);
  for (int helper = 0; helper < used; ++helper) {
    helpers.emplace_back([&, helper] {
      try {
        for (int i = helper; i < count; i += kHelpers) run(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (failure != nullptr) return;
        failure = std::current_exception();
        on_failure();
      }
    });
  }
  for (std::thread& helper : helpers) helper.join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace varlen::dist
