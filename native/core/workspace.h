#pragma once

#include <cstddef>
#include <cstdint>

#include "core/memory.h"

namespace varlen {

// Scratch memory of one running op, cached per thread so that repeated calls do not touch the OS.
// Uninitialised. Throws std::bad_alloc, which ParallelFor and the stream turn into a Status.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // The next `count` elements, aligned to 64 bytes.
  template <class T>
  T* Take(int64_t count) {
    T* start = reinterpret_cast<T*>(data_ + used_);
    used_ += BytesFor<T>(count);
    return start;
  }
  // What Take<T>(count) uses up; sum these for the constructor.
  template <class T>
  static constexpr int64_t BytesFor(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }

 private:
  std::byte* data_;
  int64_t bytes_;
  int64_t used_ = 0;
};

}  // namespace varlen
