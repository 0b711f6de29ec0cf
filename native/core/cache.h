#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/memory_source.h"
#include "core/progress.h"
#include "core/status.h"
#include "core/storage.h"

namespace varlen {

// Bytes of all caches of host memory.
MemoryStats GetMemoryStats();

// Memory of one stream, handed out in stream order: a block whose last owner has left serves
// the next op at once, though ops before it still use it, because the stream runs them first.
// Otherwise a program that runs ahead of its stream would hold every intermediate of every queued
// op.
class Cache {
 public:
  // Who touches the memory first.
  enum class Writer {
    kStream,  // an op of the stream: any free block will do
    kHost,    // the calling thread, now: only a block no queued op still uses
  };

  // Free memory beyond this and beyond what is in use goes back to the system. Free blocks that
  // queued ops still use may hold as much before a host writer has to wait for one of them.
  static constexpr int64_t kKeepBytes = int64_t{256} << 20;

  // Bytes of the block that serves a request: eight classes per octave, so that at most 12.5 % is
  // unused and equal tensors share blocks.
  static int64_t SizeClass(int64_t bytes);

  static Cache* New(std::shared_ptr<const Progress> progress, MemorySource& source = HostMemory()) {
    return new Cache(std::move(progress), source);
  }
  // The stream lets go; the cache lives until its last storage does.
  void Abandon() { Unref(); }

  // Fails with ERR_VARLEN_OUT_OF_MEMORY; the caller may wait for the stream and try once more.
  Status Allocate(int64_t bytes, Writer writer, StorageRef* storage);

  // The ticket to wait for before Allocate(bytes, kHost): the one after which a block of that size,
  // or else some block, is idle. 0 while the free blocks do not hold much.
  uint64_t WaitBeforeHostWrite(int64_t bytes);

  // Gives idle blocks back to the system, until at most `keep` free bytes are left.
  void Trim(int64_t keep);

 private:
  struct Block {
    std::byte* data;
    uint64_t ticket;  // calls that may still touch it: those up to this number
  };
  // The blocks of one size. `free` has room for all of them, so that giving one back cannot fail.
  struct SizeList {
    std::vector<Block> free;
    size_t existing = 0;
  };

  Cache(std::shared_ptr<const Progress> progress, MemorySource& source)
      : progress_(std::move(progress)), source_(source) {}
  ~Cache();
  std::byte* TakeFree(int64_t size, Writer writer);
  std::byte* TakeNew(int64_t size);
  void GiveBack(std::byte* data, int64_t size) noexcept;
  static void Release(void* cache, Storage& storage);
  void Unref();

  const std::shared_ptr<const Progress> progress_;
  MemorySource& source_;
  std::mutex mutex_;
  std::map<int64_t, SizeList> sizes_;  // by bytes of a block
  int64_t free_bytes_ = 0;
  std::atomic<int64_t> refs_{1};
};

}  // namespace varlen
