#include "core/simt/host/global_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

namespace varlen::simt {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<const unsigned char*, int64_t> allocations;  // start -> bytes
  std::atomic<uint64_t> version = 0;                    // rises with every change
};

Registry& Allocations() {
  static Registry* registry = new Registry;  // outlives every static buffer
  return *registry;
}

// The last allocation that a check of this host thread hit.
struct LastHit {
  const unsigned char* start = nullptr;
  int64_t bytes = 0;
  uint64_t version = ~uint64_t{0};
};
thread_local LastHit last_hits[4];  // q, k, v and out alternate
thread_local unsigned next_hit = 0;

// Pages that a fill of this size would touch are filled at once; larger buffers stay untouched
// zeros.
constexpr int64_t kMaxPoisoned = int64_t{256} << 20;

}  // namespace

GlobalMemory::GlobalMemory(int64_t bytes) : bytes_(bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = (static_cast<size_t>(bytes) + page - 1) / page * page;
  mapping_bytes_ = used + 2 * page;
  void* mapping =
      mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  if (used > 0) mprotect(mapping_ + page, used, PROT_READ | PROT_WRITE);
  // 16 bytes: what cp.async and TMA ask of a base address.
  data_ = mapping_ + page + (used - static_cast<size_t>(bytes)) / 16 * 16;
  if (bytes <= kMaxPoisoned) std::memset(data_, 0xff, static_cast<size_t>(bytes));
  Registry& registry = Allocations();
  const std::lock_guard lock(registry.mutex);
  registry.allocations[data_] = bytes;
  ++registry.version;
}

GlobalMemory::~GlobalMemory() {
  {
    Registry& registry = Allocations();
    const std::lock_guard lock(registry.mutex);
    registry.allocations.erase(data_);
    ++registry.version;
  }
  munmap(mapping_, mapping_bytes_);
}

void CheckGlobal(const void* pointer, int64_t bytes, int64_t alignment, const char* what,
                 const Site& site) {
  const auto* p = static_cast<const unsigned char*>(pointer);
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    Stop(FaultKind::kAlignment,
         std::string(what) + " of " + std::to_string(bytes) +
             " bytes of global memory, expected a multiple of " + std::to_string(alignment),
         site);
  }
  Registry& registry = Allocations();
  for (const LastHit& hit : last_hits) {
    if (hit.version == registry.version && p >= hit.start && p + bytes <= hit.start + hit.bytes) {
      return;
    }
  }
  const std::lock_guard lock(registry.mutex);
  auto next = registry.allocations.upper_bound(p);
  if (next != registry.allocations.begin()) {
    const auto& [start, size] = *std::prev(next);
    if (p + bytes <= start + size) {
      last_hits[next_hit++ % 4] = {start, size, registry.version};
      return;
    }
    Stop(FaultKind::kGlobalRange,
         std::string(what) + " of " + std::to_string(bytes) + " bytes at offset " +
             std::to_string(p - start) + " of an allocation of " + std::to_string(size),
         site);
  }
  Stop(FaultKind::kGlobalRange,
       std::string(what) + " of " + std::to_string(bytes) + " bytes outside every allocation",
       site);
}

}  // namespace varlen::simt
