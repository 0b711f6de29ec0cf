#include "core/storage.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>

#include "core/companion.h"
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

// Few storages have one, so they are not a field of it. Never destroyed, as above.
struct Companions {
  std::mutex mutex;
  std::unordered_map<const Storage*, std::shared_ptr<void>> of;
  std::atomic<size_t> count{0};

  static Companions& Get() {
    static auto* companions = new Companions;
    return *companions;
  }
  void Drop(const Storage* storage) {
    if (count.load(std::memory_order_acquire) == 0) return;
    std::shared_ptr<void> dropped;  // goes after the lock: it may hold storages itself
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = of.find(storage);
    if (found == of.end()) return;
    dropped = std::move(found->second);
    of.erase(found);
    count.store(of.size(), std::memory_order_release);
  }
};

}  // namespace

std::shared_ptr<void> CompanionOf(const Storage& storage, std::shared_ptr<void> (*make)()) {
  Companions& companions = Companions::Get();
  const std::lock_guard<std::mutex> lock(companions.mutex);
  std::shared_ptr<void>& companion = companions.of[&storage];
  if (companion == nullptr) companion = make();
  companions.count.store(companions.of.size(), std::memory_order_release);
  return companion;
}

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
  Companions::Get().Drop(this);
  const Failure* failure = failure_.load(std::memory_order_relaxed);
  if (failure != &OutOfMemoryFailure()) delete failure;
}

}  // namespace varlen
