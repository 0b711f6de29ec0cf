#include "core/workspace.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

using namespace varlen;

TEST_CASE("parts of a workspace are aligned and do not overlap") {
  const int64_t bytes = Workspace::BytesFor<float>(3) + Workspace::BytesFor<double>(100) +
                        Workspace::BytesFor<uint8_t>(65);
  CHECK(bytes == 64 + 832 + 128);
  Workspace workspace(bytes);
  float* a = workspace.Take<float>(3);
  double* b = workspace.Take<double>(100);
  uint8_t* c = workspace.Take<uint8_t>(65);
  for (const void* part : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(c)}) {
    CHECK(reinterpret_cast<uintptr_t>(part) % 64 == 0);
  }
  std::memset(a, 1, 12);
  std::memset(b, 2, 800);
  std::memset(c, 3, 65);
  CHECK(reinterpret_cast<uint8_t*>(a)[11] == 1);
  CHECK(reinterpret_cast<uint8_t*>(b)[799] == 2);
}

TEST_CASE("a thread takes the memory of its last workspace again") {
  std::thread([] {  // a cache of its own
    float* before;
    {
      Workspace workspace(4096);
      before = workspace.Take<float>(1);
    }
    Workspace smaller(1000);
    CHECK(smaller.Take<float>(1) == before);
    Workspace second(1000);
    CHECK(second.Take<float>(1) != before);
  })
      .join();
}

TEST_CASE("the largest blocks are kept when there are many") {
  std::thread([] {
    std::vector<float*> blocks;
    {
      std::vector<std::unique_ptr<Workspace>> all;
      for (int64_t i = 1; i <= 6; ++i) {
        all.push_back(std::make_unique<Workspace>(i * 4096));
        blocks.push_back(all.back()->Take<float>(1));
      }
    }
    Workspace largest(6 * 4096);
    CHECK(largest.Take<float>(1) == blocks[5]);
    Workspace next(5 * 4096);
    CHECK(next.Take<float>(1) == blocks[4]);
  }).join();
}

TEST_CASE("a workspace that cannot be had throws bad_alloc, and the next one works") {
  CHECK_THROWS_AS(Workspace(int64_t{1} << 60), std::bad_alloc);
  Workspace workspace(64);
  *workspace.Take<float>(16) = 1;
}
