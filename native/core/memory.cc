#include "core/memory.h"

#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace varlen {

void* AllocateAligned(int64_t bytes) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(static_cast<size_t>(alignment),
                                  static_cast<size_t>(rounded == 0 ? alignment : rounded));
#if defined(__linux__)
  if (data != nullptr && bytes >= kHugePage)
    madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
  return data;
}

void FreeAligned(void* data) { std::free(data); }

SystemMemory GetSystemMemory() {
#if defined(__linux__)
  const int64_t page = sysconf(_SC_PAGESIZE);
  return {sysconf(_SC_AVPHYS_PAGES) * page, sysconf(_SC_PHYS_PAGES) * page};
#else
  return {0, 0};
#endif
}

}  // namespace varlen
