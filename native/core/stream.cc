#include "core/stream.h"

#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "core/cancel.h"

namespace varlen {
namespace {

// A small op ends sooner than a sleeping thread wakes; waiting for the next one awake pays up to
// here.
constexpr auto kSpin = std::chrono::microseconds(20);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

std::string NameOf(Device device) {
  return device.kind == DeviceKind::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

Status Stream::Enqueue(std::unique_ptr<Task> task, uint64_t* ticket) {
  if (Status status = CheckDevice(); !status.ok()) return status;
  const int64_t bytes = task->bytes;
  bool wake = false;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    // Tasks that a GPU has not done yet count as queued; the one that a CPU runs does not.
    const auto over_cap = [&] {
      const size_t waiting = queue_.size() + launched();
      return waiting >= kMaxQueuedTasks || (waiting > 0 && queued_bytes_ + bytes > kMaxQueuedBytes);
    };
    if (over_cap()) {
      ++waiters_;
      done_.wait(lock, [&] { return !over_cap() || closed_.load(); });
      --waiters_;
    }
    if (closed_.load()) return {Code::kDisposed, "stream", "is closed", {}};
    if (!has_thread_) {
      if (Status status = StartThread(); !status.ok()) return status;
    }
    queue_.push_back(std::move(task));
    queued_bytes_ += bytes;
    *ticket = progress_->enqueued.fetch_add(1, std::memory_order_release) + 1;
    wake = asleep_;
  }
  if (wake) work_.notify_one();
  return {};
}

Status Stream::StartThread() {
  try {
    std::thread([self = shared_from_this()] { self->Serve(); }).detach();
  } catch (const std::system_error& error) {
    return {Code::kOutOfMemory, "stream", std::string("got no thread: ") + error.what(), {}};
  }
  has_thread_ = true;
  return {};
}

// Holds its stream until another one has passed a ticket.
class WaitTask final : public Task {
 public:
  WaitTask(Stream& own, std::shared_ptr<Stream> other, uint64_t ticket)
      : own_(own), other_(std::move(other)), ticket_(ticket) {}

  void Run(uint64_t) override { own_.WaitOn(*other_, ticket_); }

 private:
  Stream& own_;  // runs this
  std::shared_ptr<Stream> other_;
  uint64_t ticket_;
};

Status Stream::After(const std::shared_ptr<Stream>& other, uint64_t ticket) {
  if (other.get() == this || other->completed() >= ticket) return {};
  uint64_t own = 0;
  return Enqueue(std::make_unique<WaitTask>(*this, other, ticket), &own);
}

Status Stream::Use(Storage& storage) {
  if (storage.home() != cache_) storage.MarkShared();
  if (storage.writer() == nullptr) return {};
  return After(storage.writer(), storage.write_ticket());
}

void Stream::Serve() {
  const CancelScope cancel(&closed_);
  std::unique_lock<std::mutex> lock(mutex_);
  while (std::unique_ptr<Task> task = Next(lock)) {
    const uint64_t ticket = ++taken_;
    lock.unlock();
    Execute(std::move(task), ticket);
    lock.lock();
  }
  lock.unlock();
  Flush();
}

void Stream::Execute(std::unique_ptr<Task> task, uint64_t ticket) {
  const int64_t bytes = task->bytes;
  const bool touches = task->touches_environment();
  if (!touches || EnterEnvironment()) {
    task->Run(ticket);
    task->Done(ticket, nullptr);
  }
  task.reset();
  if (touches) LeaveEnvironment();
  Complete(ticket, bytes);
}

bool Stream::EnterEnvironment() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_.load()) return false;
  touching_environment_ = true;
  return true;
}

void Stream::LeaveEnvironment() {
  const std::lock_guard<std::mutex> lock(mutex_);
  touching_environment_ = false;
  if (waiters_ > 0) done_.notify_all();
}

void Stream::Complete(uint64_t ticket, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  queued_bytes_ -= bytes;
  progress_->completed.store(ticket, std::memory_order_release);
  if (waiters_ > 0) done_.notify_all();
}

// The next task, or none when the thread ends.
std::unique_ptr<Task> Stream::Next(std::unique_lock<std::mutex>& lock) {
  if (queue_.empty() && !closed_.load() && !finishing_) {
    const uint64_t taken = taken_;
    lock.unlock();
    Flush();
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (enqueued() == taken && !closed_.load() && std::chrono::steady_clock::now() < end) {
      Pause();
    }
    lock.lock();
    asleep_ = true;
    work_.wait(lock, [&] { return !queue_.empty() || closed_.load() || finishing_; });
    asleep_ = false;
  }
  if (closed_.load() || queue_.empty()) {
    has_thread_ = false;
    return nullptr;
  }
  std::unique_ptr<Task> task = std::move(queue_.front());
  queue_.pop_front();
  return task;
}

void Stream::WaitFor(uint64_t ticket, const std::atomic<bool>* give_up) {
  if (completed() >= ticket) return;
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiters_;
  const auto over = [&] {
    return completed() >= ticket || closed_.load() || (give_up != nullptr && give_up->load());
  };
  if (give_up == nullptr) {
    done_.wait(lock, over);
  } else {
    // Whoever raises `give_up` does not know this stream, so it is looked at now and then.
    while (!over()) done_.wait_for(lock, std::chrono::milliseconds(1));
  }
  --waiters_;
}

Status Stream::Allocate(int64_t bytes, Cache::Writer writer, StorageRef* storage) {
  if (writer == Cache::Writer::kHost) {
    const uint64_t ticket = cache_->WaitBeforeHostWrite(bytes);
    if (ticket > completed()) {
      WaitFor(ticket);
      cache_->Trim(Cache::kKeepBytes);
    }
  }
  Status status = cache_->Allocate(bytes, writer, storage);
  if (!status.ok()) {
    Reclaim();
    status = cache_->Allocate(bytes, writer, storage);
  }
  // Ops before this call may still use the block: another stream must not touch it before them.
  const uint64_t since = writer == Cache::Writer::kStream ? enqueued() : 0;
  if (status.ok()) (*storage)->WrittenBy(shared_from_this(), since);
  return status;
}

void Stream::Reclaim() {
  WaitFor(enqueued());  // queued ops may hold the last references to what could be freed
  Trim();
}

Status Stream::Fill(const Tensor& tensor, const void* source, int64_t bytes) {
  std::memcpy(tensor.address(), source, static_cast<size_t>(bytes));
  return {};
}

void Stream::Finish() {
  std::lock_guard<std::mutex> lock(mutex_);
  finishing_ = true;
  work_.notify_all();
}

void Stream::Close() {
  std::unique_lock<std::mutex> lock(mutex_);
  closed_.store(true);
  work_.notify_all();
  done_.notify_all();
  while (!queue_.empty()) {
    std::unique_ptr<Task> dropped = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();  // its tensors give their memory back
    dropped.reset();
    lock.lock();
  }
  ++waiters_;
  done_.wait(lock, [&] { return !touching_environment_; });
  --waiters_;
}

}  // namespace varlen
