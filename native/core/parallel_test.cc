#include "core/parallel.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/cancel.h"
#include "doctest/doctest.h"

namespace varlen {
namespace {

// The rest of the suite keeps its own number of threads.
class ThreadsScope {
 public:
  explicit ThreadsScope(int threads) : before_(NumThreads()) { SetNumThreads(threads); }
  ~ThreadsScope() { SetNumThreads(before_); }

 private:
  int before_;
};

// Counts of every piece after one region.
std::vector<int> CountPieces(int64_t pieces) {
  std::vector<std::atomic<int>> counts(static_cast<size_t>(pieces));
  const Status status =
      ParallelFor(pieces, [&](int64_t piece, int) { counts[static_cast<size_t>(piece)]++; });
  REQUIRE(status.ok());
  return {counts.begin(), counts.end()};
}

TEST_CASE("Every piece runs exactly once, for any number of threads") {
  for (int threads : {1, 2, 3, 7, 16}) {
    const ThreadsScope scope(threads);
    for (int64_t pieces : {0, 1, 2, 7, 1000}) {
      CHECK(CountPieces(pieces) == std::vector<int>(static_cast<size_t>(pieces), 1));
    }
  }
}

TEST_CASE("Many small regions in a row lose nothing") {
  const ThreadsScope scope(3);
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 5000; ++i) {
    REQUIRE(ParallelFor(4, [&](int64_t piece, int) { sum += piece; }).ok());
  }
  CHECK(sum == 5000 * 6);
}

TEST_CASE("Pieces that run at the same time have different worker numbers") {
  const ThreadsScope scope(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> clashes{0};
  const Status status = ParallelFor(400, [&](int64_t, int worker) {
    if (worker < 0 || worker >= 4 || inside[static_cast<size_t>(worker)]++ != 0) ++clashes;
    std::this_thread::yield();
    inside[static_cast<size_t>(worker)]--;
  });
  CHECK(status.ok());
  CHECK(clashes == 0);
}

TEST_CASE("Regions of several callers and nested regions all finish") {
  const ThreadsScope scope(3);
  std::atomic<int> count{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        (void)ParallelFor(
            3, [&](int64_t, int) { (void)ParallelFor(5, [&](int64_t, int) { ++count; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(count == 4 * 50 * 3 * 5);
}

TEST_CASE("Memory that runs out in a piece becomes the region's status") {
  const ThreadsScope scope(2);
  const Status status = ParallelFor(20, [](int64_t piece, int) {
    if (piece == 7) throw std::bad_alloc();
  });
  CHECK(status.code == Code::kOutOfMemory);
  CHECK(CountPieces(10) == std::vector<int>(10, 1));
}

TEST_CASE("Any other exception comes out on the calling thread, once all have left") {
  for (int threads : {1, 2, 7, 16}) {
    const ThreadsScope scope(threads);
    std::atomic<int> inside{0};
    const auto piece = [&](int64_t piece, int) {
      ++inside;
      std::this_thread::yield();
      --inside;
      if (piece % 7 == 3) throw std::runtime_error("piece");
    };
    CHECK_THROWS_AS((void)ParallelFor(1000, piece), std::runtime_error);
    CHECK(inside == 0);
    CHECK(CountPieces(10) == std::vector<int>(10, 1));
  }
}

TEST_CASE("More than one thread takes part when there is work for it") {
  const ThreadsScope scope(4);
  std::atomic<int> inside{0}, most{0};
  const Status status = ParallelFor(4, [&](int64_t, int) {
    const int now = ++inside;
    for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    // Until somebody else comes, or long enough that nobody will.
    for (int i = 0; i < 2000 && most < 2; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    --inside;
  });
  CHECK(status.ok());
  CHECK(most >= 2);
}

TEST_CASE("A cancel scope gives the flag of the one around it back") {
  std::atomic<bool> outer{true}, inner{false};
  const CancelScope around(&outer);
  {
    const CancelScope scope(&inner);
    CHECK_FALSE(Cancelled());
  }
  CHECK(Cancelled());
}

TEST_CASE("The number of threads stays between 1 and 1024") {
  const ThreadsScope scope(5);
  CHECK(NumThreads() == 5);
  SetNumThreads(0);
  CHECK(NumThreads() == 1);
  SetNumThreads(1 << 20);
  CHECK(NumThreads() == 1024);
}

TEST_CASE("A region stops soon after it is no longer wanted, and its helpers know") {
  const ThreadsScope scope(2);
  std::atomic<bool> cancelled{false};
  const CancelScope cancel(&cancelled);
  std::atomic<int64_t> done{0};
  const Status status = ParallelFor(1000000, [&](int64_t piece, int) {
    if (piece == 10) cancelled = true;
    if (piece > 10) {
      while (!Cancelled()) YieldThread();
    }
    ++done;
  });
  CHECK(status.code == Code::kCancelled);
  CHECK(done < 1000);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // both need address space
TEST_CASE("A region works when no helper thread can be created") {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_AS, &none);  // no stack for a thread
    SetNumThreads(64);
    std::atomic<int> count{0};
    const Status status = ParallelFor(50, [&](int64_t, int) { ++count; });
    _exit(status.ok() && count == 50 ? 0 : 1);
  }
  int result = -1;
  REQUIRE(waitpid(child, &result, 0) == child);
  CHECK(WIFEXITED(result));
  CHECK(WEXITSTATUS(result) == 0);
}
#endif

}  // namespace
}  // namespace varlen
