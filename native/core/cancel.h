#pragma once

#include <atomic>

namespace varlen {

// While it lives, Cancelled() on this thread, and on threads that help it, reads `flag`.
class CancelScope {
 public:
  explicit CancelScope(const std::atomic<bool>* flag);
  ~CancelScope();
  CancelScope(const CancelScope&) = delete;
  CancelScope& operator=(const CancelScope&) = delete;

 private:
  const std::atomic<bool>* outer_;
};

}  // namespace varlen
