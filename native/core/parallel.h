#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "core/status.h"

// The process-wide thread pool. Work is split inside an op; which thread runs which piece never
// changes a result, because pieces depend on shapes only.
namespace varlen {

// Threads that may work on one op, the calling one included.
// VARLEN_NUM_THREADS, else SetNumThreads, else the CPUs this process may use.
int NumThreads();
void SetNumThreads(int threads);

// True when the work of the current op is no longer wanted (its environment is being torn down).
// Long pieces ask at least every millisecond and return early; what they wrote is then unspecified.
bool Cancelled();

// Lets another thread run while this one waits for it: a short pause, then the rest of the slice.
void YieldThread();

namespace internal {
using PieceFn = void (*)(const void* fn, int64_t piece, int worker);
Status ParallelForImpl(int64_t pieces, PieceFn call, const void* fn);
}  // namespace internal

// Calls fn(piece, worker) for piece = 0 .. pieces-1, each once, handed out in that order to at most
// NumThreads() threads; `worker` < NumThreads() is unique among the calls that run at the same
// time. Returns when all are done. std::bad_alloc inside fn becomes ERR_VARLEN_OUT_OF_MEMORY; any
// other exception is rethrown on the calling thread. Either stops the hand-out.
template <class Fn>
Status ParallelFor(int64_t pieces, const Fn& fn) {
  return internal::ParallelForImpl(
      pieces,
      [](const void* erased, int64_t piece, int worker) {
        (*static_cast<const Fn*>(erased))(piece, worker);
      },
      &fn);
}

// Calls fn(begin, end) for [0, size) cut into pieces of `piece`, the last one shorter.
template <class Fn>
Status ParallelForRange(int64_t size, int64_t piece, const Fn& fn) {
  return ParallelFor((size + piece - 1) / piece, [&](int64_t n, int) {
    const int64_t begin = n * piece;
    fn(begin, begin + piece < size ? begin + piece : size);
  });
}

}  // namespace varlen
