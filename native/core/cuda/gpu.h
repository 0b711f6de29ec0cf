#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>
#include <vector>

#include "core/cache.h"
#include "core/cuda/api.h"
#include "core/cuda/cublas-lt.h"
#include "core/cuda/memory.h"
#include "core/cuda/serial_thread.h"
#include "core/status.h"
#include "core/storage.h"

namespace varlen::cuda {

using Site = std::source_location;

// One GPU: its memory, its threads, and whether it still answers. All environments of the process
// share it; it is never destroyed, except by tests.
class Gpu {
 public:
  // Of this process's runtime. `index` is one of the probe's devices.
  static Gpu& At(int index);
  Gpu(const CudaRuntime& api, int index);
  ~Gpu();

  const CudaRuntime& api() const { return api_; }
  int index() const { return index_; }
  int multiprocessors() const { return multiprocessors_; }
  int compute_major() const { return compute_major_; }  // 9 for compute capability 9.0
  // Makes this the GPU of the calling thread's CUDA calls.
  void Enter();

  // Allocates and frees: neither the JavaScript thread nor a stream's calls CUDA for that.
  SerialThread& worker() const { return worker_; }
  // Blocks on the events of streams in the order in which they were recorded, and tells their
  // streams. A stream that is slow delays the news of the others, never their work.
  SerialThread& waiter() const { return waiter_; }

  DeviceMemory& memory() { return memory_; }
  // A pinned block is free again when its last reference goes, which a stream drops when its copy
  // is done.
  Status AllocatePinned(int64_t bytes, StorageRef* storage);
  MemoryStats pinned_stats() const { return pinned_memory_.stats(); }

  // Events in reserve; null when CUDA gives none.
  void* TakeEvent();
  void ReturnEvent(void* event);
  // When a recorded and passed event was, in milliseconds on one clock for all streams of the GPU.
  double TimeOf(void* event);

  // Opened by the first call, on a thread that has entered.
  CublasLt& cublas_lt();

  // The status of a failed call. An error after which the context answers nothing else marks the
  // GPU lost.
  Status ErrorOf(int error, const char* call, const std::string& launch = "",
                 Site site = Site::current());
  // The same of a call of cuBLASLt, by the name of its status.
  Status CublasErrorOf(const std::string& name, const char* call, const std::string& launch,
                       Site site);
  // For calls whose failure has no caller to tell.
  void NoteError(int error, const char* call, Site site = Site::current());
  // What the pending calls reject with, naming the first op that failed; null while it answers.
  const Failure* loss() const { return loss_.load(std::memory_order_acquire); }
  // The first to tell is believed.
  void Lose(const Failure& failure);
  // Of every call after that.
  Status LostStatus() const;

 private:
  Status Failed(Code code, const std::string& got, const char* expected, const char* call,
                const std::string& launch, const Site& site) const;

  const CudaRuntime& api_;
  const int index_;
  int multiprocessors_ = 1, compute_major_ = 0;
  mutable SerialThread worker_, waiter_;
  DeviceMemory memory_;
  PinnedMemory pinned_memory_;
  Cache* const pinned_;
  std::mutex mutex_;
  std::vector<void*> events_;
  std::once_flag cublas_lt_opened_;
  std::unique_ptr<CublasLt> cublas_lt_;
  void* epoch_ = nullptr;
  std::atomic<const Failure*> loss_{nullptr};
};

}  // namespace varlen::cuda
