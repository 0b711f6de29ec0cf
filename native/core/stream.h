#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "core/cache.h"
#include "core/progress.h"
#include "core/status.h"

namespace varlen {

// One entry of a stream's queue: a call with everything it needs, by value.
class Task {
 public:
  virtual ~Task() = default;
  virtual void Run(uint64_t ticket) = 0;
  // True when Run writes memory of the JavaScript environment; closing the stream then waits for
  // it.
  virtual bool touches_environment() const { return false; }

  int64_t bytes = 0;  // memory that its outputs hold until it has run
};

// An in-order queue with a thread of its own. Calls append and return; the thread runs them one
// after the other, each on the process-wide pool. Appending waits while the queue is over its cap,
// so that a program cannot run arbitrarily far ahead of its work.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static constexpr size_t kMaxQueuedTasks = 1024;
  static constexpr int64_t kMaxQueuedBytes = int64_t{1} << 30;

  static std::shared_ptr<Stream> New() { return std::shared_ptr<Stream>(new Stream()); }
  ~Stream() { cache_->Abandon(); }

  // `ticket` is the task's number, from 1. Fails when the stream is closed or gets no thread.
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

 private:
  Stream() : progress_(std::make_shared<Progress>()), cache_(Cache::New(progress_)) {}
  Status StartThread();
  void Serve();
  std::unique_ptr<Task> Next(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable work_;  // the thread waits here
  std::condition_variable done_;  // callers wait here
  std::deque<std::unique_ptr<Task>> queue_;
  const std::shared_ptr<Progress> progress_;
  Cache* const cache_;  // the last member that allocates: nobody would abandon it
  int64_t queued_bytes_ = 0;
  int waiters_ = 0;
  bool has_thread_ = false;
  bool finishing_ = false;
  bool asleep_ = false;
  bool touching_environment_ = false;
  std::atomic<bool> closed_{false};
};

}  // namespace varlen
