#include "core/simt/host/shared_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "core/simt/host/block.h"

namespace varlen::simt {
namespace {

// Swizzled tiles want 1024-byte addresses, so the base has one.
constexpr size_t kBaseAlignment = 1024;
constexpr int kPoison = 0xff;

std::string Range(int64_t offset, int64_t bytes) {
  return std::to_string(bytes) + " bytes at shared offset " + std::to_string(offset);
}

}  // namespace

SharedMemory::SharedMemory(int64_t bytes) : bytes_(bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = (static_cast<size_t>(bytes) + page - 1) / page * page;
  mapping_bytes_ = used + 2 * page;
  void* mapping = mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  if (used > 0) mprotect(mapping_ + page, used, PROT_READ | PROT_WRITE);
  // As close to the upper guard page as the alignment of the base allows.
  data_ = mapping_ + page + (used - static_cast<size_t>(bytes)) / kBaseAlignment * kBaseAlignment;
  promised_.resize(bytes / kWord + 1);
  written_.resize(bytes / kHalf + 1);
  fences_.resize(kMaxThreads);
}

SharedMemory::~SharedMemory() { munmap(mapping_, mapping_bytes_); }

void SharedMemory::Poison() {
  std::memset(data_, kPoison, static_cast<size_t>(bytes_));
  std::fill(promised_.begin(), promised_.end(), uint16_t{0});
  std::fill(written_.begin(), written_.end(), 0u);
  std::fill(fences_.begin(), fences_.end(), 0u);
}

void SharedMemory::CheckRange(const void* pointer, int64_t bytes, int64_t alignment,
                              const char* what, const Site& site) const {
  const int64_t offset = Offset(pointer);
  if (offset < 0 || offset + bytes > bytes_) {
    Stop(FaultKind::kSharedRange,
         std::string(what) + " of " + Range(offset, bytes) + ", the block has " +
             std::to_string(bytes_),
         site);
  }
  if (offset % alignment != 0) {
    Stop(FaultKind::kAlignment,
         std::string(what) + " of " + Range(offset, bytes) + ", expected a multiple of " +
             std::to_string(alignment),
         site);
  }
}

int32_t SharedMemory::FindPromise(int64_t offset, int64_t bytes) const {
  for (int64_t word = offset / kWord; word <= (offset + bytes - 1) / kWord; ++word) {
    if (promised_[word] != 0) return promised_[word] - 1;
  }
  return -1;
}

void SharedMemory::CheckAsyncRead(int64_t offset, int64_t bytes, const char* what,
                                  const Site& site) const {
  const int32_t promiser = FindPromise(offset, bytes);
  if (promiser < 0) return;
  Stop(FaultKind::kInFlight,
       std::string(what) + " of " + Range(offset, bytes) + ", which the copy issued at " +
           Describe(promisers_[promiser]) + " has not delivered",
       site);
}

void SharedMemory::CheckRead(const void* pointer, int64_t bytes, const char* what,
                             const Site& site) const {
  CheckAsyncRead(Offset(pointer), bytes, what, site);
}

void SharedMemory::NoteWrite(void* pointer, int64_t bytes, const char* what, const Site& site) {
  const int64_t offset = Offset(pointer);
  CheckAsyncRead(offset, bytes, what, site);
  const uint32_t stamp = Stamp(Block::Current().current_thread());
  for (int64_t half = offset / kHalf; half <= (offset + bytes - 1) / kHalf; ++half) {
    written_[half] = stamp;
  }
}

void SharedMemory::CheckFenced(int64_t offset, int64_t bytes, const char* what,
                               const Site& site) const {
  for (int64_t half = offset / kHalf; half <= (offset + bytes - 1) / kHalf; ++half) {
    if (written_[half] == 0) continue;
    const int writer = static_cast<int>(written_[half] & ((1u << kThreadBits) - 1)) - 1;
    if (Stamp(writer) != written_[half]) continue;  // it has fenced since
    Stop(FaultKind::kAsyncFence,
         std::string(what) + " of " + Range(offset, bytes) + ", which thread " +
             std::to_string(writer) + " stored without a fence.proxy.async after it",
         site);
  }
}

void SharedMemory::Promise(int64_t offset, int64_t bytes, const Site& site) {
  CheckAsyncRead(offset, bytes, "a second copy", site);
  const auto same = std::find_if(promisers_.begin(), promisers_.end(), [&](const Site& other) {
    return other.line() == site.line() && other.column() == site.column() &&
           other.file_name() == site.file_name();
  });
  const auto entry = static_cast<uint16_t>(same - promisers_.begin() + 1);
  if (same == promisers_.end()) promisers_.push_back(site);
  std::memset(data_ + offset, kPoison, static_cast<size_t>(bytes));
  for (int64_t word = offset / kWord; word < (offset + bytes) / kWord; ++word) {
    promised_[word] = entry;
  }
}

void SharedMemory::Deliver(int64_t offset, const void* source, int64_t bytes, int writer) {
  std::memcpy(data_ + offset, source, static_cast<size_t>(bytes));
  for (int64_t word = offset / kWord; word < (offset + bytes) / kWord; ++word) promised_[word] = 0;
  const uint32_t stamp = writer < 0 ? 0 : Stamp(writer);
  for (int64_t half = offset / kHalf; half < (offset + bytes) / kHalf; ++half) {
    written_[half] = stamp;
  }
}

}  // namespace varlen::simt
