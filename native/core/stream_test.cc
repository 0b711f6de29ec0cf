#include "core/stream.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/op_task.h"
#include "core/parallel.h"

using namespace varlen;

namespace {

using namespace std::chrono_literals;

class FnTask final : public Task {
 public:
  explicit FnTask(std::function<void(uint64_t)> fn, bool touches = false)
      : fn_(std::move(fn)), touches_(touches) {}
  void Run(uint64_t ticket) override { fn_(ticket); }
  bool touches_environment() const override { return touches_; }

 private:
  std::function<void(uint64_t)> fn_;
  bool touches_;
};

uint64_t Put(Stream& stream, std::function<void(uint64_t)> fn, int64_t bytes = 0) {
  auto task = std::make_unique<FnTask>(std::move(fn));
  task->bytes = bytes;
  uint64_t ticket = 0;
  REQUIRE(stream.Enqueue(std::move(task), &ticket).ok());
  return ticket;
}

// Closes its stream at the end, as an environment does.
struct Owned {
  std::shared_ptr<Stream> stream = Stream::New();
  ~Owned() { stream->Close(); }
  Stream* operator->() const { return stream.get(); }
  Stream& operator*() const { return *stream; }
};

// A task that waits for `Open`.
struct Gate {
  std::promise<void> promise;
  std::shared_future<void> opened = promise.get_future().share();
  std::shared_ptr<std::promise<void>> started = std::make_shared<std::promise<void>>();

  void Open() { promise.set_value(); }
  std::function<void(uint64_t)> Task() {
    return [opened = opened, started = started](uint64_t) {
      started->set_value();
      opened.wait();
    };
  }
  // Puts it on the stream and returns when it runs, out of the queue.
  void Block(Stream& stream) {
    Put(stream, Task());
    started->get_future().wait();
  }
};

// An op for OpTask: out = in + 1, or whatever `trouble` does.
struct Probe {
  static constexpr const char* kName = "probe";
  Tensor in, out;
  std::function<Status()> trouble;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("in", in, kAnyType, {});
    v.Out("out", out, kAnyType, {});
  }
};
Status Run(const Probe& probe) {
  if (probe.trouble) return probe.trouble();
  *probe.out.data<float>() = *probe.in.data<float>() + 1;
  return {};
}

}  // namespace

TEST_CASE("a stream runs its tasks in order and numbers them from 1") {
  Owned stream;
  std::vector<uint64_t> order;
  uint64_t last = 0;
  for (uint64_t i = 1; i <= 5000; ++i) {
    last = Put(*stream, [&](uint64_t ticket) { order.push_back(ticket); });
    REQUIRE(last == i);
  }
  stream->WaitFor(last);
  REQUIRE(order.size() == 5000);
  for (uint64_t i = 0; i < 5000; ++i) REQUIRE(order[i] == i + 1);
  CHECK(stream->completed() == 5000);
}

TEST_CASE("a task that comes while the thread sleeps wakes it") {
  Owned stream;
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(2ms);  // far beyond the spinning
    bool ran = false;
    stream->WaitFor(Put(*stream, [&](uint64_t) { ran = true; }));
    REQUIRE(ran);
  }
}

TEST_CASE("appending waits while the queue holds its largest number of tasks") {
  Owned stream;
  Gate gate;
  gate.Block(*stream);
  std::atomic<int> appended{0};
  std::thread caller([&] {
    for (size_t i = 0; i < Stream::kMaxQueuedTasks + 10; ++i) {
      Put(*stream, [](uint64_t) {});
      ++appended;
    }
  });
  for (int i = 0; i < 1000 && appended < int(Stream::kMaxQueuedTasks); ++i) {
    std::this_thread::sleep_for(1ms);
  }
  std::this_thread::sleep_for(30ms);
  CHECK(appended == int(Stream::kMaxQueuedTasks));
  gate.Open();
  caller.join();
  CHECK(appended == int(Stream::kMaxQueuedTasks) + 10);
}

TEST_CASE("appending waits while the outputs of the queue hold their largest number of bytes") {
  Owned stream;
  Gate gate;
  gate.Block(*stream);
  std::atomic<int> appended{0};
  std::thread caller([&] {
    for (int i = 0; i < 6; ++i) {
      Put(
          *stream, [](uint64_t) {}, Stream::kMaxQueuedBytes / 4);
      ++appended;
    }
  });
  for (int i = 0; i < 1000 && appended < 4; ++i) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(30ms);
  CHECK(appended == 4);
  gate.Open();
  caller.join();
  CHECK(appended == 6);
}

TEST_CASE("one task larger than the cap is taken when nothing else is queued") {
  Owned stream;
  const uint64_t ticket = Put(
      *stream, [](uint64_t) {}, 2 * Stream::kMaxQueuedBytes);
  stream->WaitFor(ticket);
  CHECK(stream->completed() == ticket);
}

TEST_CASE("Close drops what is queued, and later calls fail") {
  auto stream = Stream::New();
  Gate gate;
  bool ran = false;
  gate.Block(*stream);
  Put(*stream, [&](uint64_t) { ran = true; });
  std::thread opener([&] {
    std::this_thread::sleep_for(5ms);
    gate.Open();
  });
  stream->Close();
  opener.join();
  uint64_t ticket = 0;
  const Status status = stream->Enqueue(std::make_unique<FnTask>([](uint64_t) {}), &ticket);
  CHECK(status.code == Code::kDisposed);
  std::this_thread::sleep_for(5ms);
  CHECK_FALSE(ran);
}

TEST_CASE("Close waits for a task that touches the environment, not for another") {
  for (const bool touches : {true, false}) {
    auto stream = Stream::New();
    Gate gate;
    std::promise<void> started;
    std::atomic<bool> finished{false};
    uint64_t ticket = 0;
    REQUIRE(stream
                ->Enqueue(std::make_unique<FnTask>(
                              [&, opened = gate.opened](uint64_t) {
                                started.set_value();
                                opened.wait();
                                finished = true;
                              },
                              touches),
                          &ticket)
                .ok());
    started.get_future().wait();
    std::thread opener([&] {
      std::this_thread::sleep_for(20ms);
      gate.Open();
    });
    stream->Close();
    CHECK(finished == touches);
    opener.join();
    while (!finished) std::this_thread::yield();
    std::this_thread::sleep_for(2ms);  // the task's lambda is used until its thread lets go
  }
}

TEST_CASE("Close raises the flag that the running task's loops look at") {
  auto stream = Stream::New();
  std::promise<void> started;
  std::promise<Code> ended;
  uint64_t ticket = 0;
  REQUIRE(stream
              ->Enqueue(std::make_unique<FnTask>([&](uint64_t) {
                          started.set_value();
                          while (!Cancelled()) std::this_thread::yield();
                          ended.set_value(ParallelFor(10, [](int64_t, int) {}).code);
                        }),
                        &ticket)
              .ok());
  started.get_future().wait();
  stream->Close();
  CHECK(ended.get_future().get() == Code::kCancelled);
}

TEST_CASE("Close wakes a caller that waits for room, who then fails") {
  auto stream = Stream::New();
  Gate gate;
  gate.Block(*stream);
  std::promise<Status> result;
  std::thread caller([&] {
    Status status;
    for (size_t i = 0; i < Stream::kMaxQueuedTasks + 1 && status.ok(); ++i) {
      uint64_t ticket = 0;
      status = stream->Enqueue(std::make_unique<FnTask>([](uint64_t) {}), &ticket);
    }
    result.set_value(std::move(status));
  });
  std::this_thread::sleep_for(30ms);
  stream->Close();
  CHECK(result.get_future().get().code == Code::kDisposed);
  caller.join();
  gate.Open();
}

TEST_CASE("Finish runs what is queued; what comes later still runs too") {
  Owned stream;
  int ran = 0;
  for (int i = 0; i < 100; ++i) Put(*stream, [&](uint64_t) { ++ran; });
  stream->Finish();
  stream->WaitFor(stream->enqueued());
  CHECK(ran == 100);
  for (int i = 0; i < 20; ++i) {
    stream->WaitFor(Put(*stream, [&](uint64_t) { ++ran; }));
    std::this_thread::sleep_for(1ms);
  }
  CHECK(ran == 120);
}

TEST_CASE("a finished stream lets go of itself") {
  std::weak_ptr<Stream> gone;
  {
    auto stream = Stream::New();
    gone = stream;
    Put(*stream, [](uint64_t) {});
    stream->Finish();
  }
  for (int i = 0; i < 2000 && !gone.expired(); ++i) std::this_thread::sleep_for(1ms);
  CHECK(gone.expired());
}

TEST_CASE("a stream waits for another one's ticket") {
  Owned first, second;
  Gate gate;
  std::atomic<int> step{0};
  gate.Block(*first);
  const uint64_t ticket = Put(*first, [&](uint64_t) { step = 1; });
  REQUIRE(second->After(first.stream, ticket).ok());
  int seen = -1;
  const uint64_t last = Put(*second, [&](uint64_t) { seen = step; });
  std::this_thread::sleep_for(10ms);
  CHECK(second->completed() < last);
  gate.Open();
  second->WaitFor(last);
  CHECK(seen == 1);
}

TEST_CASE("waiting for what is done, or for oneself, costs no task") {
  Owned first, second;
  const uint64_t ticket = Put(*first, [](uint64_t) {});
  first->WaitFor(ticket);
  REQUIRE(second->After(first.stream, ticket).ok());
  REQUIRE(second->After(second.stream, 1000).ok());
  CHECK(second->enqueued() == 0);
}

TEST_CASE("a stream that is closed does not hold the one that waits for it, nor the reverse") {
  auto first = Stream::New();
  Owned second;
  Gate gate;
  gate.Block(*first);
  REQUIRE(second->After(first, first->enqueued()).ok());
  const uint64_t last = Put(*second, [](uint64_t) {});
  first->Close();
  second->WaitFor(last);
  CHECK(second->completed() >= last);
  gate.Open();
}

TEST_CASE("a stream that is closed while it waits for another one ends its thread") {
  Owned first;
  Gate gate;
  gate.Block(*first);
  auto second = Stream::New();
  const std::weak_ptr<Stream> gone = second;
  REQUIRE(second->After(first.stream, first->enqueued()).ok());
  std::this_thread::sleep_for(5ms);
  second->Close();
  second.reset();
  for (int i = 0; i < 2000 && !gone.expired(); ++i) std::this_thread::sleep_for(1ms);
  CHECK(gone.expired());
  gate.Open();
}

TEST_CASE("using a storage waits for its writer on another stream and keeps its memory there") {
  Owned first, second;
  Gate gate;
  StorageRef storage;
  REQUIRE(first->Allocate(1000, Cache::Writer::kStream, &storage).ok());
  storage->AddOwner();
  gate.Block(*first);
  const uint64_t write = first->enqueued();
  storage->WrittenBy(first.stream, write);
  REQUIRE(first->Use(*storage.get()).ok());
  CHECK(first->enqueued() == 1);  // its own order is enough
  REQUIRE(second->Use(*storage.get()).ok());
  CHECK(second->enqueued() == 1);  // the wait
  StorageRef reader = storage;
  std::byte* data = storage->data();
  storage->DropOwner();
  storage = {};
  StorageRef next;
  REQUIRE(first->Allocate(1000, Cache::Writer::kStream, &next).ok());
  CHECK(next->data() != data);  // the other stream still has it
  gate.Open();
  second->WaitFor(1);
}

TEST_CASE("a fresh block that queued ops of its stream still use makes another stream wait") {
  Owned first, second;
  Gate gate;
  gate.Block(*first);
  StorageRef storage;
  REQUIRE(first->Allocate(1000, Cache::Writer::kStream, &storage).ok());
  REQUIRE(second->Use(*storage.get()).ok());
  CHECK(second->enqueued() == 1);
  StorageRef host;
  REQUIRE(first->Allocate(1000, Cache::Writer::kHost, &host).ok());
  REQUIRE(second->Use(*host.get()).ok());
  CHECK(second->enqueued() == 1);  // nobody else has this one
  gate.Open();
}

TEST_CASE("a request that cannot be met waits for the queue, fails, and the next one works") {
  Owned stream;
  Put(*stream, [](uint64_t) { std::this_thread::sleep_for(5ms); });
  StorageRef storage;
  CHECK(stream->Allocate(int64_t{1} << 60, Cache::Writer::kHost, &storage).code ==
        Code::kOutOfMemory);
  CHECK(stream->completed() == 1);
  CHECK(stream->Allocate(1000, Cache::Writer::kHost, &storage).ok());
}

TEST_CASE("host writers that run ahead wait instead of taking ever more memory") {
  Owned stream;
  const int64_t before = GetMemoryStats().reserved;
  constexpr int64_t kBytes = int64_t{64} << 20;
  int64_t most = 0;
  for (int i = 0; i < 40; ++i) {
    StorageRef storage;
    REQUIRE(stream->Allocate(kBytes, Cache::Writer::kHost, &storage).ok());
    storage->AddOwner();
    Put(*stream, [keep = storage](uint64_t) { std::this_thread::sleep_for(1ms); });
    storage->DropOwner();
    most = std::max(most, GetMemoryStats().reserved - before);
  }
  CHECK(most <= Cache::kKeepBytes + 2 * kBytes);
}

TEST_CASE("an op's failure is written into its output and passed on by those who read it") {
  Owned stream;
  Tensor a = Tensor::Empty(DType::kF32, {}), b = a, c = a;
  b.storage = StorageRef(Storage::New(4));
  c.storage = StorageRef(Storage::New(4));
  *a.data<float>() = 1;
  const auto put = [&](Probe probe) {
    uint64_t ticket = 0;
    REQUIRE(stream->Enqueue(std::make_unique<OpTask<Probe>>(std::move(probe)), &ticket).ok());
    stream->WaitFor(ticket);
  };
  put({a, b, nullptr});
  CHECK(*b.data<float>() == 2);
  CHECK(b.storage->failure() == nullptr);

  put({a, b, [] { return Status{Code::kTree, "keyEnd", "is wrong", {}}; }});
  *c.data<float>() = 7;
  put({b, c, nullptr});
  CHECK(*c.data<float>() == 7);  // it did not run
  REQUIRE(c.storage->failure() != nullptr);
  CHECK(c.storage->failure()->status.code == Code::kTree);
  CHECK(c.storage->failure()->op == std::string("probe"));
  CHECK(c.storage->failure()->call == 2);
}

TEST_CASE("an exception in an op becomes its failure, and the stream goes on") {
  Owned stream;
  const std::pair<std::function<Status()>, Code> troubles[] = {
      {[]() -> Status { throw std::bad_alloc(); }, Code::kOutOfMemory},
      {[]() -> Status { throw std::runtime_error("a bug"); }, Code::kUnsupported},
      {[]() -> Status { return ParallelFor(10, [](int64_t, int) { throw std::bad_alloc(); }); },
       Code::kOutOfMemory},
      {[]() -> Status {
         return ParallelFor(10, [](int64_t, int) { throw std::length_error("a bug"); });
       },
       Code::kUnsupported},
  };
  for (const auto& [trouble, code] : troubles) {
    const Tensor in = Tensor::Empty(DType::kF32, {});
    const Tensor out = Tensor::Empty(DType::kF32, {});
    uint64_t ticket = 0;
    REQUIRE(
        stream->Enqueue(std::make_unique<OpTask<Probe>>(Probe{in, out, trouble}), &ticket).ok());
    stream->WaitFor(ticket);
    REQUIRE(out.storage->failure() != nullptr);
    CHECK(out.storage->failure()->status.code == code);
  }
  bool ran = false;
  stream->WaitFor(Put(*stream, [&](uint64_t) { ran = true; }));
  CHECK(ran);
}

TEST_CASE("an op's entry in the queue counts the bytes of its outputs") {
  Tensor in = Tensor::Empty(DType::kF32, {}), out = Tensor::Empty(DType::kF32, {1000});
  CHECK(OpTask<Probe>(Probe{in, out, nullptr}).bytes == 4000);
}
