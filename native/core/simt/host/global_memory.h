#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/simt/host/fault.h"

namespace varlen::simt {

// "Device" memory of a test: registered, so that every emulated access is checked to lie inside one
// allocation, and followed by a guard page, so that a plain pointer past the end stops the process
// too. Untouched pages cost nothing: a buffer of more than 2^32 bytes is fine.
class GlobalMemory {
 public:
  explicit GlobalMemory(int64_t bytes);
  ~GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  unsigned char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* mapping_;
  size_t mapping_bytes_;
  unsigned char* data_;
  int64_t bytes_;
};

// The same as an array of T. Starts as 0xff bytes unless it is filled.
template <class T>
class GlobalArray {
 public:
  explicit GlobalArray(int64_t size) : memory_(size * sizeof(T)), size_(size) {}
  GlobalArray(const T* first, int64_t size) : GlobalArray(size) {
    for (int64_t i = 0; i < size; ++i) data()[i] = first[i];
  }
  explicit GlobalArray(const std::vector<T>& values) : GlobalArray(values.data(), values.size()) {}

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data()[i]; }
  T* begin() const { return data(); }
  T* end() const { return data() + size_; }

 private:
  GlobalMemory memory_;
  int64_t size_;
};

// Stops the running thread unless [pointer, pointer + bytes) lies inside one allocation.
void CheckGlobal(const void* pointer, int64_t bytes, int64_t alignment, const char* what,
                 const Site& site);

}  // namespace varlen::simt
