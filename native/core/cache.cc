#include "core/cache.h"

#include <algorithm>
#include <bit>
#include <new>
#include <string>

#include "core/memory.h"

namespace varlen {
namespace {

std::atomic<int64_t> g_allocated{0};
std::atomic<int64_t> g_reserved{0};
std::atomic<int64_t> g_peak{0};

void CountAllocated(int64_t bytes) {
  const int64_t now = g_allocated.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = g_peak.load(std::memory_order_relaxed);
  while (now > peak && !g_peak.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

// Eight classes per octave: at most 12.5 % of a block is unused, and equal tensors share blocks.
int64_t SizeClass(int64_t bytes) {
  if (bytes <= kAlignment) return kAlignment;
  const int log2 = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 1;
  const int64_t step = std::max(int64_t{1} << log2 >> 3, kAlignment);
  return (bytes + step - 1) / step * step;
}

// Free memory beyond this and beyond what is in use goes back to the system.
constexpr int64_t kKeepBytes = int64_t{256} << 20;

}  // namespace

MemoryStats GetMemoryStats() {
  return {g_allocated.load(std::memory_order_relaxed), g_reserved.load(std::memory_order_relaxed),
          g_peak.load(std::memory_order_relaxed)};
}

Cache::~Cache() {
  for (auto& [size, blocks] : free_) {
    for (Block& block : blocks) {
      FreeAligned(block.data);
      g_reserved.fetch_sub(block.bytes, std::memory_order_relaxed);
    }
  }
}

void Cache::Unref() {
  if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

Status Cache::Allocate(int64_t bytes, Writer writer, StorageRef* storage) {
  const int64_t size = SizeClass(bytes);
  std::byte* data = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Block>& blocks = free_[size];
    const uint64_t completed = progress_->completed.load(std::memory_order_acquire);
    for (size_t i = blocks.size(); i-- > 0 && data == nullptr;) {  // the latest is the warmest
      if (writer == Writer::kHost && blocks[i].ticket > completed) continue;
      data = blocks[i].data;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
      free_bytes_ -= size;
    }
  }
  if (data == nullptr) {
    data = static_cast<std::byte*>(AllocateAligned(size));
    if (data == nullptr) {
      Trim(0);
      data = static_cast<std::byte*>(AllocateAligned(size));
    }
    if (data == nullptr) {
      Status status{Code::kOutOfMemory,
                    "",
                    "host memory is exhausted; got a request of " + std::to_string(bytes) +
                        " bytes, expected one that fits beside the " +
                        std::to_string(g_reserved.load()) + " bytes already reserved",
                    {}};
      const SystemMemory system = GetSystemMemory();
      status.details = {{"requestedBytes", static_cast<double>(bytes)},
                        {"freeBytes", static_cast<double>(system.free_bytes)},
                        {"totalBytes", static_cast<double>(system.total_bytes)}};
      return status;
    }
    g_reserved.fetch_add(size, std::memory_order_relaxed);
  }
  try {
    *storage = StorageRef(new Storage(data, size, &Cache::Release, this));
  } catch (const std::bad_alloc&) {
    FreeAligned(data);
    g_reserved.fetch_sub(size, std::memory_order_relaxed);
    throw;
  }
  refs_.fetch_add(1, std::memory_order_relaxed);
  CountAllocated(size);
  return {};
}

void Cache::Release(void* context, Storage& storage) {
  Cache* cache = static_cast<Cache*>(context);
  CountAllocated(-storage.bytes());
  bool crowded = false;
  try {
    std::lock_guard<std::mutex> lock(cache->mutex_);
    cache->free_[storage.bytes()].push_back(
        {storage.data(), storage.bytes(),
         cache->progress_->enqueued.load(std::memory_order_acquire)});
    cache->free_bytes_ += storage.bytes();
    crowded = cache->free_bytes_ > kKeepBytes + g_allocated.load(std::memory_order_relaxed);
  } catch (const std::bad_alloc&) {
    // No memory for the list entry. Freeing now could pull the block from under a queued op, so it
    // stays reserved: a block lost beats a crash.
  }
  if (crowded) cache->Trim(kKeepBytes);
  cache->Unref();
}

void Cache::Trim(int64_t keep) {
  const uint64_t completed = progress_->completed.load(std::memory_order_acquire);
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = free_.rbegin(); it != free_.rend() && free_bytes_ > keep; ++it) {
    std::erase_if(it->second, [&](const Block& block) {
      if (free_bytes_ <= keep || block.ticket > completed) return false;
      FreeAligned(block.data);
      g_reserved.fetch_sub(block.bytes, std::memory_order_relaxed);
      free_bytes_ -= block.bytes;
      return true;
    });
  }
}

}  // namespace varlen
