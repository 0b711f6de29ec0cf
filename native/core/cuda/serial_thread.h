#pragma once

#include <functional>
#include <memory>

namespace varlen::cuda {

// A thread that runs what it is given, one after the other. Started by the first call; detached, so
// that a process can end while CUDA holds it.
class SerialThread {
 public:
  SerialThread();
  ~SerialThread();  // what is queued still runs

  void Post(std::function<void()> work);
  // Returns when `work` has run; work of this thread's own runs at once.
  void Call(const std::function<void()>& work);

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace varlen::cuda
