#include "core/cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/memory.h"

using namespace varlen;

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// A cache and the stream it believes in.
struct Fixture {
  std::shared_ptr<Progress> progress = std::make_shared<Progress>();
  Cache* cache = Cache::New(progress);
  ~Fixture() { cache->Abandon(); }

  StorageRef Take(int64_t bytes, Cache::Writer writer = Cache::Writer::kStream) {
    StorageRef storage;
    REQUIRE(cache->Allocate(bytes, writer, &storage).ok());
    storage->AddOwner();
    return storage;
  }
  // The owner leaves; whether references stay is the caller's business.
  static std::byte* Leave(const StorageRef& storage) {
    std::byte* data = storage->data();
    storage->DropOwner();
    return data;
  }
};

}  // namespace

TEST_CASE("a size class holds the request, wastes at most an eighth, and is its own class") {
  int64_t before = 0;
  for (int64_t bytes = 0; bytes < 100000; bytes += 7) {
    const int64_t size = Cache::SizeClass(bytes);
    REQUIRE(size >= bytes);
    REQUIRE(size % kAlignment == 0);
    REQUIRE(size >= before);
    REQUIRE(size - bytes <= std::max(bytes / 8 + 1, kAlignment));
    REQUIRE(Cache::SizeClass(size) == size);
    before = size;
  }
  CHECK(Cache::SizeClass(0) == 64);
  CHECK(Cache::SizeClass(1024) == 1024);
  CHECK(Cache::SizeClass(1025) == 1152);
  CHECK(Cache::SizeClass(16 * kMiB) == 16 * kMiB);
  CHECK(Cache::SizeClass(int64_t{1} << 50) == int64_t{1} << 50);
}

TEST_CASE(
    "a block whose owner has left serves the next op at once, though queued ops still use it") {
  Fixture f;
  f.progress->enqueued = 5;  // five calls are queued, none is done
  const StorageRef first = f.Take(1000);
  const std::byte* data = Fixture::Leave(first);  // `first` is still referenced, as a task would
  CHECK(f.Take(1000)->data() == data);
}

TEST_CASE("the host never writes a block that a queued op still uses") {
  Fixture f;
  f.progress->enqueued = 5;
  const std::byte* data = Fixture::Leave(f.Take(1000));
  const StorageRef early = f.Take(1000, Cache::Writer::kHost);
  CHECK(early->data() != data);
  f.progress->completed = 4;
  const StorageRef later = f.Take(1000, Cache::Writer::kHost);
  CHECK(later->data() != data);
  f.progress->completed = 5;
  const StorageRef safe = f.Take(1000, Cache::Writer::kHost);
  CHECK(safe->data() == data);
}

TEST_CASE("the host takes the idle block among busy ones") {
  Fixture f;
  const StorageRef a = f.Take(1000), b = f.Take(1000);
  f.progress->enqueued = 1;
  const std::byte* idle = Fixture::Leave(a);
  f.progress->enqueued = 2;
  Fixture::Leave(b);
  f.progress->completed = 1;
  CHECK(f.Take(1000, Cache::Writer::kHost)->data() == idle);
}

TEST_CASE("the latest block given back is taken first, and sizes do not mix") {
  Fixture f;
  const StorageRef a = f.Take(1000), b = f.Take(1000), large = f.Take(5000);
  Fixture::Leave(a);
  const std::byte* second = Fixture::Leave(b);
  Fixture::Leave(large);
  CHECK(f.Take(1000)->data() == second);
  CHECK(f.Take(4900)->data() == large->data());
}

TEST_CASE("the counts of memory rise and fall with the storages") {
  const MemoryStats before = GetMemoryStats();
  {
    Fixture f;
    StorageRef storage = f.Take(kMiB);
    CHECK(GetMemoryStats().allocated == before.allocated + kMiB);
    CHECK(GetMemoryStats().reserved == before.reserved + kMiB);
    CHECK(GetMemoryStats().peak >= before.allocated + kMiB);
    Fixture::Leave(storage);
    CHECK(GetMemoryStats().allocated == before.allocated);
    CHECK(GetMemoryStats().reserved == before.reserved + kMiB);
  }
  CHECK(GetMemoryStats().reserved == before.reserved);
}

TEST_CASE("trimming gives idle blocks back, never one that a queued op still uses") {
  const int64_t before = GetMemoryStats().reserved;
  Fixture f;
  const StorageRef a = f.Take(kMiB), b = f.Take(2 * kMiB);
  Fixture::Leave(a);
  f.progress->enqueued = 1;
  Fixture::Leave(b);
  f.cache->Trim(0);
  CHECK(GetMemoryStats().reserved == before + 2 * kMiB);
  f.progress->completed = 1;
  f.cache->Trim(2 * kMiB);
  CHECK(GetMemoryStats().reserved == before + 2 * kMiB);
  f.cache->Trim(0);
  CHECK(GetMemoryStats().reserved == before);
}

TEST_CASE("free memory beyond the limit goes back by itself") {
  Fixture f;
  const int64_t before = GetMemoryStats().reserved;
  std::vector<StorageRef> storages;
  for (int i = 0; i < 6; ++i) storages.push_back(f.Take(64 * kMiB));
  CHECK(GetMemoryStats().reserved == before + 6 * 64 * kMiB);
  for (const StorageRef& storage : storages) Fixture::Leave(storage);
  CHECK(GetMemoryStats().reserved - before <= Cache::kKeepBytes + GetMemoryStats().allocated);
}

TEST_CASE(
    "a host writer is told to wait once busy free blocks hold much, for the earliest of its size") {
  Fixture f;
  std::vector<StorageRef> storages;
  for (int i = 0; i < 5; ++i) storages.push_back(f.Take(64 * kMiB));
  for (size_t i = 0; i < 4; ++i) {
    f.progress->enqueued = 10 + i;
    Fixture::Leave(storages[i]);
    CHECK(f.cache->WaitBeforeHostWrite(64 * kMiB) == 0);
  }
  f.progress->enqueued = 20;
  Fixture::Leave(storages[4]);
  CHECK(f.cache->WaitBeforeHostWrite(64 * kMiB) == 10);
  CHECK(f.cache->WaitBeforeHostWrite(1000) == 10);  // none of its size: any
}

TEST_CASE(
    "a request that cannot be met fails with the bytes it asked for, and the next one works") {
  Fixture f;
  Fixture::Leave(f.Take(1000));
  StorageRef storage;
  const Status status = f.cache->Allocate(int64_t{1} << 60, Cache::Writer::kStream, &storage);
  REQUIRE(status.code == Code::kOutOfMemory);
  CHECK_FALSE(static_cast<bool>(storage));
  REQUIRE(status.details.size() == 3);
  CHECK(status.details[0].first == std::string("requestedBytes"));
  CHECK(status.details[0].second == std::ldexp(1.0, 60));
  CHECK(status.details[2].second > 0);
  CHECK(f.Take(1000)->bytes() == 1024);
}

TEST_CASE("storages outlive the stream that let go of its cache") {
  const int64_t before = GetMemoryStats().reserved;
  auto progress = std::make_shared<Progress>();
  Cache* cache = Cache::New(progress);
  StorageRef storage;
  REQUIRE(cache->Allocate(1000, Cache::Writer::kStream, &storage).ok());
  cache->Abandon();
  storage->data()[999] = std::byte{1};
  storage = {};
  CHECK(GetMemoryStats().reserved == before);
}
