#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/simt/host/fault.h"

namespace varlen::simt {

// The block's shared memory and what the emulator knows of each of its bytes:
//
// * it starts as 0xff bytes, a NaN in every float format;
// * bytes that an asynchronous copy has promised and not delivered are poisoned with 0xff and
//   marked: reading or writing them is a fault that names the line of the copy;
// * bytes that ordinary stores (the generic proxy) wrote carry their writer, until that thread
//   executes fence.proxy.async: an async-proxy read (wgmma, TMA store) of such bytes is a fault.
//
// Guard pages stand on both sides, for the kernel that dereferences a pointer by itself.
class SharedMemory {
 public:
  explicit SharedMemory(int64_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void Poison();  // a new block begins

  unsigned char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // True for the memory and its guard pages: such a pointer was meant to be shared.
  bool Near(const void* pointer) const {
    const auto* p = static_cast<const unsigned char*>(pointer);
    return p >= mapping_ && p < mapping_ + mapping_bytes_;
  }
  int64_t Offset(const void* pointer) const {
    return static_cast<const unsigned char*>(pointer) - data_;
  }

  // The checks of one access by the running thread. `what` names the instruction.
  void CheckRange(const void* pointer, int64_t bytes, int64_t alignment, const char* what,
                  const Site& site) const;
  void CheckRead(const void* pointer, int64_t bytes, const char* what, const Site& site) const;
  // An ordinary store: checks, then marks the bytes as `thread`'s.
  void NoteWrite(void* pointer, int64_t bytes, const char* what, const Site& site);
  // Async-proxy reads name offsets; the running thread is the one that issued them.
  void CheckAsyncRead(int64_t offset, int64_t bytes, const char* what, const Site& site) const;
  void CheckFenced(int64_t offset, int64_t bytes, const char* what, const Site& site) const;

  // An asynchronous copy to [offset, offset + bytes) begins: poisons and marks. Multiples of 4.
  void Promise(int64_t offset, int64_t bytes, const Site& site);
  // ... and ends, with these bytes. `writer`: the thread for cp.async (generic proxy), -1 for TMA.
  void Deliver(int64_t offset, const void* source, int64_t bytes, int writer);

  // fence.proxy.async by the running thread.
  void FenceAsync(int thread) { ++fences_[thread]; }

 private:
  static constexpr int kWord = 4;  // bytes per entry of promised_
  static constexpr int kHalf = 2;  // bytes per entry of written_
  static constexpr int kThreadBits = 11;

  uint32_t Stamp(int thread) const {
    return (fences_[thread] << kThreadBits) | static_cast<uint32_t>(thread + 1);
  }
  int32_t FindPromise(int64_t offset, int64_t bytes) const;  // index into promisers_, or -1

  unsigned char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  unsigned char* data_ = nullptr;
  int64_t bytes_;
  std::vector<uint16_t> promised_;  // 0: none, else index into promisers_ plus one
  std::vector<Site> promisers_;     // each line of the kernel once
  std::vector<uint32_t> written_;   // 0: nothing to fence, else Stamp(writer) at the store
  std::vector<uint32_t> fences_;    // per thread
};

}  // namespace varlen::simt
