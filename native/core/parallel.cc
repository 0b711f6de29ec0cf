#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "core/cancel.h"

namespace varlen {
namespace {

constexpr int kMaxThreads = 1024;

int CpusOfThisProcess() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

int InitialThreads() {
  if (const char* text = std::getenv("VARLEN_NUM_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1 && n <= kMaxThreads) return n;
  }
  return CpusOfThisProcess();
}

std::atomic<int>& Threads() {
  static std::atomic<int> threads{InitialThreads()};
  return threads;
}

// Tells the core that this is a waiting loop.
void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local const std::atomic<bool>* t_cancel = nullptr;

// How long a thread looks for work, or for the end of a region, before it sleeps: about what waking
// it would cost. Consecutive small regions then find their helpers awake.
constexpr std::chrono::microseconds kSpin{20};

// Polls `done` for at most kSpin.
template <class Done>
bool SpinUntil(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// One ParallelFor in progress. It lives on its caller's stack; helpers leave before the caller
// does.
struct Region {
  internal::PieceFn call;
  const void* fn;
  int64_t pieces;
  const std::atomic<bool>* cancel;
  int max_workers;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  bool out_of_memory = false;  // these two belong to whoever raised `failed` until all have left
  std::exception_ptr exception{};
  std::atomic<int> active{0};  // helpers inside; changes under Pool::mutex_
  int workers = 0;             // ever joined: the next worker number; guarded by Pool::mutex_

  void Work(int worker) {
    const std::atomic<bool>* outer = std::exchange(t_cancel, cancel);
    try {
      for (;;) {
        const int64_t piece = next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= pieces || failed.load(std::memory_order_relaxed) || Cancelled()) break;
        call(fn, piece, worker);
      }
    } catch (const std::bad_alloc&) {
      if (!failed.exchange(true)) out_of_memory = true;
    } catch (...) {
      if (!failed.exchange(true)) exception = std::current_exception();
    }
    t_cancel = outer;
  }
  bool HasWork() const { return next.load(std::memory_order_relaxed) < pieces; }
};

// Helpers of all regions. Created on first use and never destroyed: its threads may outlive every
// JavaScript environment and must not meet a destroyed mutex while the process exits.
class Pool {
 public:
  static Pool& Get() {
    static Pool* pool = new Pool();
    return *pool;
  }

  void Run(Region& region) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      region.workers = 1;  // the caller is worker 0
      try {
        regions_.push_back(&region);
        arrivals_.fetch_add(1, std::memory_order_release);
        while (helpers_ < region.max_workers - 1) {
          std::thread([this] { Help(); }).detach();
          ++helpers_;
        }
      } catch (...) {
        // No thread or no memory for one: those that exist do the work, if need be the caller
        // alone.
      }
    }
    wake_.notify_all();
    region.Work(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      std::erase(regions_, &region);  // from here on nobody joins
    }
    const auto left = [&] { return region.active.load(std::memory_order_acquire) == 0; };
    if (SpinUntil(left)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, left);
  }

 private:
  void Help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Region* region = Pick();
      if (region == nullptr) {
        const uint64_t seen = arrivals_.load(std::memory_order_relaxed);
        lock.unlock();
        SpinUntil([&] { return arrivals_.load(std::memory_order_acquire) != seen; });
        lock.lock();
        wake_.wait(lock, [&] { return (region = Pick()) != nullptr; });
      }
      const int worker = region->workers++;
      region->active.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      region->Work(worker);
      lock.lock();
      // The caller may be gone, and its region with it, as soon as the count is zero.
      if (region->active.fetch_sub(1, std::memory_order_release) == 1) idle_.notify_all();
    }
  }

  Region* Pick() {
    for (Region* region : regions_) {
      if (region->workers < region->max_workers && region->HasWork()) return region;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::vector<Region*> regions_;
  std::atomic<uint64_t> arrivals_{0};  // regions so far: what idle helpers watch
  int helpers_ = 0;
};

}  // namespace

int NumThreads() { return Threads().load(std::memory_order_relaxed); }

void SetNumThreads(int threads) {
  Threads().store(std::min(std::max(threads, 1), kMaxThreads), std::memory_order_relaxed);
}

bool Cancelled() { return t_cancel != nullptr && t_cancel->load(std::memory_order_relaxed); }

void YieldThread() {
  for (int i = 0; i < 32; ++i) Pause();
  sched_yield();
}

CancelScope::CancelScope(const std::atomic<bool>* flag) : outer_(std::exchange(t_cancel, flag)) {}
CancelScope::~CancelScope() { t_cancel = outer_; }

namespace internal {

Status ParallelForImpl(int64_t pieces, PieceFn call, const void* fn) {
  Region region{call, fn, pieces, t_cancel,
                static_cast<int>(std::min<int64_t>(NumThreads(), pieces))};
  if (region.max_workers <= 1) {
    region.Work(0);
  } else {
    Pool::Get().Run(region);
  }
  if (region.exception) std::rethrow_exception(region.exception);
  if (region.out_of_memory) return OutOfMemory();
  if (Cancelled()) return {Code::kCancelled, "", "cancelled", {}};
  return {};
}

}  // namespace internal
}  // namespace varlen
