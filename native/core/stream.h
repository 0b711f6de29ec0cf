#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "core/cache.h"
#include "core/progress.h"
#include "core/status.h"
#include "core/tensor.h"

namespace varlen {

// "cpu" or "cuda:N".
std::string NameOf(Device device);

// One entry of a stream's queue: a call with everything it needs, by value.
class Task {
 public:
  virtual ~Task() = default;
  // Does the work; on a GPU begins it.
  virtual void Run(uint64_t ticket) = 0;
  // What Run began is done, or `lost` says why it never will be. In the order of the stream, right
  // after Run on the CPU.
  virtual void Done(uint64_t, const Failure* /*lost*/) {}
  // What Run began turned out to be wrong when it was done: before Done.
  virtual void Fail(const Failure&) {}
  virtual const char* name() const { return ""; }
  // True when Done, and on the CPU Run, writes memory of the JavaScript environment; closing the
  // stream then waits for it.
  virtual bool touches_environment() const { return false; }
  // True when somebody waits for this very task: its end is reported at once.
  virtual bool awaited() const { return touches_environment(); }

  int64_t bytes = 0;  // memory that its outputs hold until it has run
};

// An in-order queue with a thread of its own. Calls append and return; the thread runs them one
// after the other, each on the process-wide pool; that of a GPU (core/cuda/stream.h) launches them.
// Appending waits while the queue is over its cap, so that a program cannot run arbitrarily far
// ahead of its work.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static constexpr size_t kMaxQueuedTasks = 1024;
  static constexpr int64_t kMaxQueuedBytes = int64_t{1} << 30;

  // Of the CPU.
  static std::shared_ptr<Stream> New() {
    return std::shared_ptr<Stream>(new Stream({DeviceKind::kCpu, 0}, HostMemory()));
  }
  virtual ~Stream() { cache_->Abandon(); }

  Device device() const { return device_; }

  // `ticket` is the task's number, from 1. Fails when the stream is closed, gets no thread, or its
  // device is lost.
  Status Enqueue(std::unique_ptr<Task> task, uint64_t* ticket);
  // Work enqueued from now on starts after `other` has done `ticket`.
  Status After(const std::shared_ptr<Stream>& other, uint64_t ticket);
  // To be called before a task that reads or writes `storage`. What another stream writes is waited
  // for, and memory that another stream allocated is not reused before the task is done.
  Status Use(Storage& storage);

  uint64_t enqueued() const { return progress_->enqueued.load(std::memory_order_acquire); }
  uint64_t completed() const { return progress_->completed.load(std::memory_order_acquire); }
  // Returns when `ticket` is done, or when the stream is closed, or when `*give_up` becomes true.
  void WaitFor(uint64_t ticket, const std::atomic<bool>* give_up = nullptr);

  // Memory for the next op of this stream, or for the calling thread to fill. Waits for the queue
  // and tries again before it gives up; a host writer also waits when queued ops hold much memory
  // that nobody can name any more.
  Status Allocate(int64_t bytes, Cache::Writer writer, StorageRef* storage);
  const std::atomic<bool>& closed() const { return closed_; }
  const void* cache() const { return cache_; }
  void Trim() { cache_->Trim(0); }

  // Runs what is queued, then ends the thread. A task that comes later still (a read of what this
  // stream wrote) starts another one.
  void Finish();
  // Drops what is queued, asks the running op to stop, and waits only for a task that touches the
  // environment's memory. The thread ends on its own; later calls fail.
  void Close();

  // Writes `bytes` of host memory into a contiguous tensor that nobody else knows yet. `source` is
  // read during the call.
  virtual Status Fill(const Tensor& tensor, const void* source, int64_t bytes);

 protected:
  Stream(Device device, MemorySource& memory)
      : progress_(std::make_shared<Progress>()),
        device_(device),
        cache_(Cache::New(progress_, memory)) {}

  // Runs a task on the stream's thread; calls Complete for it, now or later.
  virtual void Execute(std::unique_ptr<Task> task, uint64_t ticket);
  // The stream's thread has nothing to do for the moment.
  virtual void Flush() {}
  // Whatever the stream runs from now on comes after `other` has done `ticket`. Stream's thread.
  virtual void WaitOn(Stream& other, uint64_t ticket) { other.WaitFor(ticket, &closed_); }
  virtual Status CheckDevice() const { return {}; }
  // An allocation failed: gives back what can be given back.
  virtual void Reclaim();
  // Tasks that left the queue and are not done, those a CPU runs excepted.
  virtual size_t launched() const { return 0; }
  uint64_t taken() const { return taken_; }
  friend class WaitTask;

  // Tasks up to `ticket`, which held `bytes`, are done.
  void Complete(uint64_t ticket, int64_t bytes);
  // To be called around what writes the environment's memory; false: it is closed, leave it alone.
  bool EnterEnvironment();
  void LeaveEnvironment();

 private:
  Status StartThread();
  void Serve();
  std::unique_ptr<Task> Next(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable work_;  // the thread waits here
  std::condition_variable done_;  // callers wait here
  std::deque<std::unique_ptr<Task>> queue_;
  const std::shared_ptr<Progress> progress_;
  const Device device_;
  Cache* const cache_;        // the last member that allocates: nobody would abandon it
  int64_t queued_bytes_ = 0;  // of tasks that are not done
  uint64_t taken_ = 0;        // tickets that left the queue
  int waiters_ = 0;
  bool has_thread_ = false;
  bool finishing_ = false;
  bool asleep_ = false;
  bool touching_environment_ = false;
  std::atomic<bool> closed_{false};
};

}  // namespace varlen
