#include "core/cuda/memory.h"

#include <iterator>
#include <string>
#include <vector>

#include "core/cuda/gpu.h"
#include "core/live_tensors.h"
#include "core/memory.h"

namespace varlen::cuda {
namespace {

int64_t RoundUp(int64_t bytes, int64_t step) { return (bytes + step - 1) / step * step; }

}  // namespace

std::byte* DeviceMemory::Take(int64_t bytes) {
  bytes = RoundUp(bytes, kAlign);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (std::byte* data = TakeSpan(bytes)) return data;
  return NewSegment(bytes) == nullptr ? nullptr : TakeSpan(bytes);
}

// The smallest free span that fits, at the lowest address.
std::byte* DeviceMemory::TakeSpan(int64_t bytes) {
  const bool small = bytes <= kSmallBlock;
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second.bytes < bytes || segments_.at(it->second.segment).small != small) continue;
    if (best == free_.end() || it->second.bytes < best->second.bytes) best = it;
  }
  if (best == free_.end()) return nullptr;
  std::byte* data = best->first;
  const Span span = best->second;
  free_.erase(best);
  if (span.bytes > bytes) free_[data + bytes] = {span.bytes - bytes, span.segment};
  return data;
}

std::byte* DeviceMemory::NewSegment(int64_t bytes) {
  const bool small = bytes <= kSmallBlock;
  const int64_t size = small ? kSmallSegment : RoundUp(bytes, kLargeStep);
  void* data = nullptr;
  int error = error::kSuccess;
  gpu_.worker().Call([&] {
    gpu_.Enter();
    error = gpu_.api().allocate(&data, size);
  });
  if (error != error::kSuccess) {
    gpu_.NoteError(error, "cudaMalloc");
    return nullptr;
  }
  auto* segment = static_cast<std::byte*>(data);
  segments_[segment] = {size, small};
  free_[segment] = {size, segment};
  CountReserved(size);
  return segment;
}

void DeviceMemory::Give(std::byte* data, int64_t bytes) {
  bytes = RoundUp(bytes, kAlign);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::byte* segment = std::prev(segments_.upper_bound(data))->first;
  auto at = free_.emplace(data, Span{bytes, segment}).first;
  const auto merge = [&](auto left, auto right) {
    if (left->second.segment != right->second.segment ||
        left->first + left->second.bytes != right->first) {
      return left;
    }
    left->second.bytes += right->second.bytes;
    free_.erase(right);
    return left;
  };
  if (std::next(at) != free_.end()) merge(at, std::next(at));
  if (at != free_.begin()) merge(std::prev(at), at);
}

std::byte* DeviceMemory::SegmentOf(const std::byte* data, int64_t* bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto after = segments_.upper_bound(const_cast<std::byte*>(data));
  if (after == segments_.begin()) return nullptr;
  const auto& [start, segment] = *std::prev(after);
  if (data >= start + segment.bytes) return nullptr;
  *bytes = segment.bytes;
  return start;
}

void DeviceMemory::ReleaseSegments() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<void*> released;
  for (auto it = free_.begin(); it != free_.end();) {
    const Span span = it->second;
    if (it->first != span.segment || span.bytes != segments_.at(span.segment).bytes) {
      ++it;
      continue;
    }
    released.push_back(it->first);
    CountReserved(-span.bytes);
    segments_.erase(span.segment);
    it = free_.erase(it);
  }
  if (released.empty()) return;
  gpu_.worker().Call([&] {
    gpu_.Enter();
    for (void* data : released) gpu_.NoteError(gpu_.api().release(data), "cudaFree");
  });
}

Status DeviceMemory::Exhausted(int64_t bytes) const {
  if (gpu_.loss() != nullptr) return gpu_.LostStatus();
  int64_t free_bytes = 0, total_bytes = 0;
  gpu_.worker().Call([&] {
    gpu_.Enter();
    gpu_.NoteError(gpu_.api().memory_info(&free_bytes, &total_bytes), "cudaMemGetInfo");
  });
  const MemoryStats held = stats();
  const int64_t cached = held.reserved - held.allocated;
  Status status{Code::kOutOfMemory,
                "",
                "memory of cuda:" + std::to_string(gpu_.index()) +
                    " is exhausted; got a request of " + std::to_string(bytes) +
                    " bytes, expected one that fits: this process holds " +
                    std::to_string(held.reserved) + " bytes (" + std::to_string(held.allocated) +
                    " in tensors, " + std::to_string(cached) + " cached), " +
                    std::to_string(free_bytes) + " of " + std::to_string(total_bytes) + " are free",
                {{"requestedBytes", static_cast<double>(bytes)},
                 {"heldBytes", static_cast<double>(held.reserved)},
                 {"cachedBytes", static_cast<double>(cached)},
                 {"freeBytes", static_cast<double>(free_bytes)},
                 {"totalBytes", static_cast<double>(total_bytes)}}};
  NameLargestTensors({DeviceKind::kCuda, gpu_.index()}, status);
  return status;
}

std::byte* PinnedMemory::Take(int64_t bytes) {
  void* data = nullptr;
  int error = error::kSuccess;
  gpu_.worker().Call([&] {
    gpu_.Enter();
    error = gpu_.api().allocate_pinned(&data, bytes);
  });
  gpu_.NoteError(error, "cudaHostAlloc");
  if (error != error::kSuccess) return nullptr;
  CountReserved(bytes);
  return static_cast<std::byte*>(data);
}

void PinnedMemory::Give(std::byte* data, int64_t bytes) {
  CountReserved(-bytes);
  gpu_.worker().Post([this, data] {
    gpu_.Enter();
    gpu_.NoteError(gpu_.api().release_pinned(data), "cudaFreeHost");
  });
}

Status PinnedMemory::Exhausted(int64_t bytes) const {
  if (gpu_.loss() != nullptr) return gpu_.LostStatus();
  const SystemMemory system = GetSystemMemory();
  return {Code::kOutOfMemory,
          "",
          "pinned host memory is exhausted; got a request of " + std::to_string(bytes) +
              " bytes, expected one that fits beside the " + std::to_string(stats().reserved) +
              " bytes already reserved",
          {{"requestedBytes", static_cast<double>(bytes)},
           {"heldBytes", static_cast<double>(stats().reserved)},
           {"freeBytes", static_cast<double>(system.free_bytes)},
           {"totalBytes", static_cast<double>(system.total_bytes)}}};
}

}  // namespace varlen::cuda
