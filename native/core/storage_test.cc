#include "core/storage.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/companion.h"
#include "core/memory.h"
#include "core/tensor.h"

using namespace varlen;

namespace {

// A storage over a dummy byte that counts how often its memory was released.
struct Counted {
  std::byte byte{};
  int released = 0;
  StorageRef ref{new Storage(
      &byte, 1, [](void* self, Storage&) { ++static_cast<Counted*>(self)->released; }, this)};
};

}  // namespace

TEST_CASE("the memory is released when the last owner leaves, references or not") {
  Counted counted;
  CHECK(counted.ref->AddOwner());
  CHECK_FALSE(counted.ref->AddOwner());
  CHECK_FALSE(counted.ref->DropOwner());
  CHECK(counted.released == 0);
  const StorageRef queued = counted.ref;
  CHECK(counted.ref->DropOwner());
  CHECK(counted.released == 1);
  counted.ref = {};
  CHECK(counted.released == 1);
}

TEST_CASE("a storage that never had an owner is released with its last reference") {
  Counted counted;
  StorageRef other = counted.ref;
  counted.ref = {};
  CHECK(counted.released == 0);
  other = {};
  CHECK(counted.released == 1);
}

TEST_CASE("a storage that another stream uses is released with its last reference, not its owner") {
  Counted counted;
  counted.ref->AddOwner();
  counted.ref->MarkShared();
  StorageRef queued = counted.ref;
  CHECK(counted.ref->DropOwner());
  counted.ref = {};
  CHECK(counted.released == 0);
  queued = {};
  CHECK(counted.released == 1);
}

TEST_CASE("references can be copied, moved and assigned to themselves") {
  Counted counted;
  StorageRef copy(counted.ref);
  StorageRef moved(std::move(copy));
  CHECK_FALSE(static_cast<bool>(copy));
  StorageRef& same = moved;
  moved = same;
  CHECK(moved.get() == counted.ref.get());
  moved = StorageRef();
  counted.ref = StorageRef();
  CHECK(counted.released == 1);
}

TEST_CASE("the first failure of a storage stays, whoever comes second") {
  Counted counted;
  CHECK(counted.ref->failure() == nullptr);
  counted.ref->Fail({{Code::kTree, "keyEnd", "first", {}}, "one", 3});
  const Failure* first = counted.ref->failure();
  counted.ref->Fail({{Code::kRange, "", "second", {}}, "two", 4});
  REQUIRE(counted.ref->failure() == first);
  CHECK(first->status.code == Code::kTree);
  CHECK(first->status.message == "first");
  CHECK(first->op == std::string("one"));
  CHECK(first->call == 3);
}

TEST_CASE("many threads may fail one storage; one of them wins") {
  for (int round = 0; round < 50; ++round) {
    Counted counted;
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        counted.ref->Fail(
            {{Code::kRange, "", "a message of more than fifteen characters", {}}, "", i});
      });
    }
    for (std::thread& thread : threads) thread.join();
    REQUIRE(counted.ref->failure() != nullptr);
  }
}

TEST_CASE("running out of memory is described without memory") {
  CHECK(OutOfMemory().code == Code::kOutOfMemory);
  CHECK(OutOfMemory().message == "out of memory");
  const std::string inside;
  CHECK(OutOfMemory().message.size() <= inside.capacity());  // no allocation
}

TEST_CASE("every code has a name of its own") {
  std::vector<std::string> names;
  for (int code = 0; code <= static_cast<int>(Code::kCancelled); ++code) {
    const std::string name = CodeName(static_cast<Code>(code));
    for (const std::string& other : names) CHECK(name != other);
    names.push_back(name);
  }
}

TEST_CASE("memory is aligned to 64 bytes, large blocks to huge pages, and nothing is a block too") {
  for (const int64_t bytes : {0, 1, 63, 64, 65, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1}) {
    CAPTURE(bytes);
    void* data = AllocateAligned(bytes);
    REQUIRE(data != nullptr);
    const uintptr_t alignment = bytes >= 2 << 20 ? 2 << 20 : 64;
    CHECK(reinterpret_cast<uintptr_t>(data) % alignment == 0);
    FreeAligned(data);
  }
  CHECK(AllocateAligned(int64_t{1} << 62) == nullptr);
  CHECK(GetSystemMemory().total_bytes > 0);
}

TEST_CASE("a tensor knows its size, its strides and whether it is contiguous") {
  const Tensor t = Tensor::Empty(DType::kF32, {2, 3, 4});
  CHECK(t.size() == 24);
  CHECK(t.strides[0] == 12);
  CHECK(t.strides[1] == 4);
  CHECK(t.strides[2] == 1);
  CHECK(t.contiguous());
  Tensor rows = t;
  rows.shape[1] = 2;
  CHECK_FALSE(rows.contiguous());
  Tensor one = t;
  one.shape[0] = 1;
  one.strides[0] = 999;  // nobody steps along a dimension of one
  CHECK(one.contiguous());
  const Tensor scalar = Tensor::Empty(DType::kF32, {});
  CHECK(scalar.size() == 1);
  CHECK(scalar.contiguous());
  CHECK(Tensor::Empty(DType::kF64, {0, 5}).size() == 0);
  CHECK_FALSE(static_cast<bool>(Tensor()));
}

TEST_CASE("a companion is found with its storage again, and goes when the storage goes") {
  static int alive = 0;
  struct Kept {
    Kept() { ++alive; }
    ~Kept() { --alive; }
  };
  const auto make = []() -> std::shared_ptr<void> { return std::make_shared<Kept>(); };
  {
    const StorageRef a(Storage::New(8)), b(Storage::New(8));
    CHECK(CompanionOf(*a.get(), make) == CompanionOf(*a.get(), make));
    CHECK(CompanionOf(*a.get(), make) != CompanionOf(*b.get(), make));
    CHECK(alive == 2);
  }
  CHECK(alive == 0);
}
