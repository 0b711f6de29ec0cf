#pragma once

#include <cstdint>

namespace varlen {

// 64: one cache line and one AVX-512 register.
inline constexpr int64_t kAlignment = 64;

// Aligned host memory, uninitialised; nullptr when there is none. Blocks of 2 MiB and more are
// aligned to huge pages and ask for them: attention and GEMM otherwise spend their time in the TLB.
void* AllocateAligned(int64_t bytes);
void FreeAligned(void* data);

struct SystemMemory {
  int64_t free_bytes;  // without swapping
  int64_t total_bytes;
};
SystemMemory GetSystemMemory();

}  // namespace varlen
