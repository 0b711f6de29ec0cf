#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "core/memory_source.h"

// Memory of one GPU, and host memory that it copies from and to without help of a processor.
namespace varlen::cuda {

class Gpu;

// Blocks cut out of segments from cudaMalloc: 20 MiB segments for blocks up to 1 MiB, segments of a
// multiple of 2 MiB for larger ones. Neighbouring free spans of a segment are one. Not
// cudaMallocAsync: its memory cannot be exported with cudaIpcGetMemHandle.
//
// Caches (core/cache.h) bring blocks back only when nothing uses them any more, so that any stream
// may get them next.
class DeviceMemory final : public MemorySource {
 public:
  static constexpr int64_t kAlign = 512;  // what cudaMalloc itself aligns to is 256
  static constexpr int64_t kSmallBlock = int64_t{1} << 20;
  static constexpr int64_t kSmallSegment = int64_t{20} << 20;
  static constexpr int64_t kLargeStep = int64_t{2} << 20;

  explicit DeviceMemory(Gpu& gpu) : gpu_(gpu) {}

  std::byte* Take(int64_t bytes) override;
  void Give(std::byte* data, int64_t bytes) override;
  Status Exhausted(int64_t bytes) const override;
  // Gives segments that are wholly free back to the driver.
  void ReleaseSegments();
  // The allocation of cudaMalloc that `data` lies in; null when it is none of ours.
  std::byte* SegmentOf(const std::byte* data, int64_t* bytes);

 private:
  struct Segment {
    int64_t bytes;
    bool small;
  };
  // A free span and the segment it lies in.
  struct Span {
    int64_t bytes;
    std::byte* segment;
  };

  std::byte* TakeSpan(int64_t bytes);
  std::byte* NewSegment(int64_t bytes);

  Gpu& gpu_;
  std::mutex mutex_;
  std::map<std::byte*, Segment> segments_;
  std::map<std::byte*, Span> free_;
};

// Page-locked host memory.
class PinnedMemory final : public MemorySource {
 public:
  explicit PinnedMemory(Gpu& gpu) : gpu_(gpu) {}
  std::byte* Take(int64_t bytes) override;
  void Give(std::byte* data, int64_t bytes) override;
  Status Exhausted(int64_t bytes) const override;

 private:
  Gpu& gpu_;
};

}  // namespace varlen::cuda
