#include "core/storage.h"

#include <cstdlib>
#include <new>

#include "core/memory.h"

namespace varlen {

Storage* Storage::New(int64_t bytes) {
  auto* data = static_cast<std::byte*>(AllocateAligned(bytes));
  if (data == nullptr) throw std::bad_alloc();
  try {
    return new Storage(
        data, bytes, [](void*, Storage& storage) { FreeAligned(storage.data()); }, nullptr);
  } catch (const std::bad_alloc&) {
    FreeAligned(data);
    throw;
  }
}

namespace {

// Stands in where there is no memory left to describe a failure. Never destroyed: threads that
// outlive main() may still point to it.
const Failure& OutOfMemoryFailure() {
  alignas(Failure) static std::byte memory[sizeof(Failure)];
  static const Failure* failure = new (memory) Failure{OutOfMemory(), "", 0};
  return *failure;
}

}  // namespace

void Storage::Fail(const Failure& failure) noexcept {
  const Failure* kept = &OutOfMemoryFailure();
  try {
    kept = new Failure(failure);
  } catch (const std::bad_alloc&) {
  }
  const Failure* expected = nullptr;
  if (!failure_.compare_exchange_strong(expected, kept, std::memory_order_acq_rel) &&
      kept != &OutOfMemoryFailure()) {
    delete kept;
  }
}

void Storage::DeleteFailure() {
  const Failure* failure = failure_.load(std::memory_order_relaxed);
  if (failure != &OutOfMemoryFailure()) delete failure;
}

}  // namespace varlen
