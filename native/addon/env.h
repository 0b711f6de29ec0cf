#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/live_tensors.h"
#include "core/stream.h"
#include "core/tensor.h"

// Everything one JavaScript environment (the main thread or a worker) owns natively. There is no
// mutable static: a worker that is terminated takes exactly its own state with it.
namespace varlen::addon {

// The numbers of a call travel through two Float64Arrays that both sides see; see bind.h.
inline constexpr int kArgSlots = 128;
inline constexpr int kResultSlots = 128;

// How a read went.
struct Outcome {
  StorageRef storage;  // keeps the failure that `failure` may point to
  Failure own;         // of the read itself, which leaves the tensor as it is
  const Failure* failure = nullptr;

  // To be called where the stream passes the read: what fails later is not its concern. `lost`: the
  // device failed before it came there.
  void Look(const Failure* lost = nullptr) {
    failure = storage ? storage->failure() : nullptr;
    if (failure != nullptr || lost == nullptr) return;
    own = *lost;
    failure = &own;
  }
};

// A promise the JavaScript side waits to settle. Made with the call, so that settling allocates
// nothing.
struct Settlement {
  double id;
  Outcome outcome;
  std::unique_ptr<Settlement> next;
};

// What outlives the environment: the queue of settlements that stream threads write.
class Mailbox {
 public:
  ~Mailbox();
  void Open(napi_threadsafe_function wake) { wake_ = wake; }
  void Post(std::unique_ptr<Settlement> settlement);
  // All that were posted since the last call, oldest first.
  std::unique_ptr<Settlement> Take();

 private:
  std::mutex mutex_;
  std::unique_ptr<Settlement> first_;
  Settlement* last_ = nullptr;
  bool signalled_ = false;
  napi_threadsafe_function wake_ = nullptr;
};

// A point in a stream's order.
struct Event {
  std::shared_ptr<Stream> stream;
  uint64_t ticket;
  std::shared_ptr<std::atomic<double>> time_ms;  // when the stream passed it; NaN until then
};

class Env {
 public:
  explicit Env(Napi::Env env);
  ~Env();

  static Env* Of(napi_env env);

  // Tensors by handle: slot + generation * 2^28, never 0. A stale handle finds nothing.
  // After Reserve(n) the next n Adds cannot fail: call it before what cannot be undone.
  void Reserve(size_t count);
  double Add(Tensor tensor);
  Tensor* Find(double handle);
  bool Remove(double handle);
  int64_t live_tensors() const { return live_tensors_; }

  // Streams and events by small number; stream 0 is the device's own. A removed stream runs what it
  // has queued; it is closed with the environment as long as anything can still reach it.
  std::shared_ptr<Stream> FindStream(double id) const;
  double AddStream(Device device);
  bool RemoveStream(double id);
  double AddEvent(Event event);
  const Event* FindEvent(double id) const;
  void RemoveEvent(double id);

  void BeginWait();  // one more promise: keeps the process alive until it settles
  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

  // Tells V8 how many bytes its tensors hold, when that moved enough to matter.
  void ReportMemory();
  int64_t reported_bytes() const { return reported_bytes_; }

  double* args = nullptr;
  double* result = nullptr;
  const char* op = "";           // of the call in progress, as errors name it
  bool external_buffers = true;  // tests: false is a runtime that forbids them
  Failure error;                 // of the call that last failed
  Napi::FunctionReference on_settled;

 private:
  struct Slot {
    Tensor tensor;
    uint32_t generation = 1;
    uint32_t next_free = 0;
  };

  static void CallJs(napi_env env, napi_value, void*, void* data);
  void Close();

  napi_env env_;
  std::vector<Slot> slots_;      // slot 0 is never used
  std::deque<LiveTensor> live_;  // of each slot; they stay where they are
  uint32_t free_slot_ = 0;
  int64_t live_tensors_ = 0;
  struct StreamSlot {
    std::shared_ptr<Stream> stream;
    bool open;
  };
  std::vector<StreamSlot> streams_;
  std::vector<Event> events_;
  std::vector<size_t> free_events_;
  std::shared_ptr<Mailbox> mailbox_;
  napi_threadsafe_function wake_ = nullptr;
  int64_t waiting_ = 0;
  int64_t held_bytes_ = 0;
  int64_t reported_bytes_ = 0;
};

// Notes why the call in progress failed; always false.
bool Fail(Env& env, Status status);

// The stream of that number; notes the failure and returns none when it was disposed.
std::shared_ptr<Stream> StreamOf(Env& env, double id);

// What src/native/binding.ts makes a VarlenError of: { code, op, call, argument, message, details
// }.
Napi::Value ErrorOf(Napi::Env env, const Failure& failure);

}  // namespace varlen::addon
