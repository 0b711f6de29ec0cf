#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/status.h"

namespace varlen {

// Bytes of all caches of one source.
struct MemoryStats {
  int64_t allocated;  // held by storages somebody can still name
  int64_t reserved;   // taken from the system
  int64_t peak;       // highest `allocated` so far
};

// Where caches get their blocks, and what all of them hold together. Any thread may call.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  // A block, or nullptr when there is none.
  virtual std::byte* Take(int64_t bytes) = 0;
  virtual void Give(std::byte* data, int64_t bytes) = 0;
  // What to say when there is none; names the bytes asked for, held and free.
  virtual Status Exhausted(int64_t bytes) const = 0;

  void CountAllocated(int64_t bytes) {
    const int64_t now = allocated_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    int64_t peak = peak_.load(std::memory_order_relaxed);
    while (now > peak && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
    }
  }
  MemoryStats stats() const {
    return {allocated_.load(std::memory_order_relaxed), reserved_.load(std::memory_order_relaxed),
            peak_.load(std::memory_order_relaxed)};
  }

 protected:
  void CountReserved(int64_t bytes) { reserved_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> allocated_{0};
  std::atomic<int64_t> reserved_{0};
  std::atomic<int64_t> peak_{0};
};

// AllocateAligned and FreeAligned. Never destroyed.
MemorySource& HostMemory();

}  // namespace varlen
