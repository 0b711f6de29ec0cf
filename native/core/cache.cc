#include "core/cache.h"

#include <algorithm>
#include <bit>
#include <new>
#include <string>

#include "core/live_tensors.h"
#include "core/memory.h"

namespace varlen {
namespace {

class AlignedHostMemory final : public MemorySource {
 public:
  std::byte* Take(int64_t bytes) override {
    auto* data = static_cast<std::byte*>(AllocateAligned(bytes));
    if (data != nullptr) CountReserved(bytes);
    return data;
  }
  void Give(std::byte* data, int64_t bytes) override {
    FreeAligned(data);
    CountReserved(-bytes);
  }
  Status Exhausted(int64_t bytes) const override {
    const SystemMemory system = GetSystemMemory();
    Status status{Code::kOutOfMemory,
                  "",
                  "host memory is exhausted; got a request of " + std::to_string(bytes) +
                      " bytes, expected one that fits beside the " +
                      std::to_string(stats().reserved) + " bytes already reserved",
                  {{"requestedBytes", static_cast<double>(bytes)},
                   {"freeBytes", static_cast<double>(system.free_bytes)},
                   {"totalBytes", static_cast<double>(system.total_bytes)}}};
    NameLargestTensors({DeviceKind::kCpu, 0}, status);
    return status;
  }
};

}  // namespace

// Not destroyed: storages may outlive main().
MemorySource& HostMemory() {
  alignas(AlignedHostMemory) static std::byte memory[sizeof(AlignedHostMemory)];
  static AlignedHostMemory* const source = new (memory) AlignedHostMemory;
  return *source;
}

MemoryStats GetMemoryStats() { return HostMemory().stats(); }

int64_t Cache::SizeClass(int64_t bytes) {
  if (bytes <= kAlignment) return kAlignment;
  const int log2 = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 1;
  const int64_t step = std::max(int64_t{1} << log2 >> 3, kAlignment);
  return (bytes + step - 1) / step * step;
}

Cache::~Cache() {
  for (auto& [size, list] : sizes_) {
    for (Block& block : list.free) {
      source_.Give(block.data, size);
    }
  }
}

void Cache::Unref() {
  if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

// The latest suitable block, because it is the warmest, or none.
std::byte* Cache::TakeFree(int64_t size, Writer writer) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Block>& blocks = sizes_[size].free;
  const uint64_t completed = progress_->completed.load(std::memory_order_acquire);
  for (size_t i = blocks.size(); i-- > 0;) {
    if (writer == Writer::kHost && blocks[i].ticket > completed) continue;
    std::byte* data = blocks[i].data;
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
    free_bytes_ -= size;
    return data;
  }
  return nullptr;
}

// A block from the system, or none.
std::byte* Cache::TakeNew(int64_t size) {
  std::lock_guard<std::mutex> lock(mutex_);
  SizeList& list = sizes_[size];
  if (list.free.capacity() <= list.existing) list.free.reserve(2 * list.existing + 1);
  std::byte* data = source_.Take(size);
  if (data != nullptr) ++list.existing;
  return data;
}

void Cache::GiveBack(std::byte* data, int64_t size) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  sizes_.find(size)->second.free.push_back(
      {data, progress_->enqueued.load(std::memory_order_acquire)});
  free_bytes_ += size;
}

Status Cache::Allocate(int64_t bytes, Writer writer, StorageRef* storage) {
  const int64_t size = SizeClass(bytes);
  std::byte* data = TakeFree(size, writer);
  if (data == nullptr) data = TakeNew(size);
  if (data == nullptr) {
    Trim(0);
    data = TakeNew(size);
  }
  if (data == nullptr) return source_.Exhausted(bytes);
  try {
    *storage = StorageRef(new Storage(data, size, &Cache::Release, this));
  } catch (const std::bad_alloc&) {
    GiveBack(data, size);
    throw;
  }
  refs_.fetch_add(1, std::memory_order_relaxed);
  source_.CountAllocated(size);
  return {};
}

uint64_t Cache::WaitBeforeHostWrite(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_bytes_ <= kKeepBytes) return 0;
  const int64_t wanted = SizeClass(bytes);
  uint64_t of_size = 0, of_any = UINT64_MAX;
  for (const auto& [size, list] : sizes_) {
    for (const Block& block : list.free) {
      of_any = std::min(of_any, block.ticket);
      if (size == wanted) of_size = of_size == 0 ? block.ticket : std::min(of_size, block.ticket);
    }
  }
  return of_size != 0 ? of_size : of_any;
}

void Cache::Release(void* context, Storage& storage) {
  Cache* cache = static_cast<Cache*>(context);
  cache->source_.CountAllocated(-storage.bytes());
  cache->GiveBack(storage.data(), storage.bytes());
  cache->Trim(kKeepBytes + cache->source_.stats().allocated);
  cache->Unref();
}

void Cache::Trim(int64_t keep) {
  const uint64_t completed = progress_->completed.load(std::memory_order_acquire);
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = sizes_.rbegin(); it != sizes_.rend() && free_bytes_ > keep; ++it) {
    const int64_t size = it->first;
    it->second.existing -= std::erase_if(it->second.free, [&](const Block& block) {
      if (free_bytes_ <= keep || block.ticket > completed) return false;
      source_.Give(block.data, size);
      free_bytes_ -= size;
      return true;
    });
  }
}

}  // namespace varlen
