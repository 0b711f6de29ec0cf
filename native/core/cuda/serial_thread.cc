#include "core/cuda/serial_thread.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace varlen::cuda {

struct SerialThread::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable called;
  std::deque<std::function<void()>> queue;
  bool running = false, closed = false;
  std::thread::id id;

  void Serve() {
    std::unique_lock<std::mutex> lock(mutex);
    id = std::this_thread::get_id();
    for (;;) {
      wake.wait(lock, [&] { return !queue.empty() || closed; });
      if (queue.empty()) return;
      std::function<void()> work = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      work();
      work = nullptr;  // before the lock: it may hold the last reference to much
      lock.lock();
    }
  }
};

SerialThread::SerialThread() : state_(std::make_shared<State>()) {}

SerialThread::~SerialThread() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->closed = true;
  state_->wake.notify_all();
}

void SerialThread::Post(std::function<void()> work) {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (!state_->running) {
      try {
        std::thread([state = state_] { state->Serve(); }).detach();
        state_->running = true;
      } catch (const std::system_error&) {
      }
    }
    if (state_->running) {
      state_->queue.push_back(std::move(work));
      state_->wake.notify_one();
      return;
    }
  }
  work();  // no thread to be had: slower, and right
}

void SerialThread::Call(const std::function<void()>& work) {
  State& state = *state_;
  std::unique_lock<std::mutex> lock(state.mutex);
  const bool own = state.running && state.id == std::this_thread::get_id();
  lock.unlock();
  if (own) return work();
  bool done = false;
  Post([&] {
    work();
    const std::lock_guard<std::mutex> done_lock(state.mutex);
    done = true;
    state.called.notify_all();
  });
  lock.lock();
  state.called.wait(lock, [&] { return done; });
}

}  // namespace varlen::cuda
