#include "core/cuda/gpu.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/copy.h"
#include "core/cuda/copy-device.h"
#include "core/cuda/fake/fake.h"
#include "core/cuda/launch.h"
#include "core/cuda/stream.h"
#include "core/cuda/transfer.h"
#include "core/op_task.h"

// The device runtime on the fake back end: every path that a GPU would take, and every failure.
namespace varlen::cuda {
namespace {

const CudaRuntime& Table() {
  static const CudaRuntime table = fake::Runtime();
  return table;
}

// A GPU of its own for a test, whose errors end with it.
struct Machine {
  explicit Machine(const fake::Machine& machine = {}) {
    fake::Reset(machine);
    gpu = std::make_unique<Gpu>(Table(), 0);
    stream = GpuStream::New(*gpu);
  }
  ~Machine() {
    fake::Go();
    fake::Delay(0);
    stream->WaitFor(stream->enqueued());
    stream->Finish();
    const std::weak_ptr<Stream> gone = stream;
    stream.reset();
    while (!gone.expired()) std::this_thread::yield();
    gpu->worker().Call([] {});
    gpu->waiter().Call([] {});
    // The next test has the whole machine, once the stream's last thread has let go.
    for (int i = 0; i < 1000 && gpu->memory().stats().reserved > 0; ++i) {
      gpu->memory().ReleaseSegments();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    static auto* const kept = new std::vector<std::unique_ptr<Gpu>>;
    kept->push_back(std::move(gpu));  // threads may still hold it
    fake::Reset();
  }

  Tensor New(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor;
    tensor.dtype = dtype;
    tensor.device = {DeviceKind::kCuda, 0};
    for (int64_t size : shape) tensor.shape[tensor.rank++] = size;
    tensor.SetContiguousStrides();
    REQUIRE(stream->Allocate(tensor.size() * SizeOf(dtype), Cache::Writer::kStream, &tensor.storage)
                .ok());
    return tensor;
  }
  template <class T>
  Tensor From(const std::vector<T>& values) {
    const Tensor tensor = New(DTypeOf<T>::value, {static_cast<int64_t>(values.size())});
    const Status status =
        stream->Fill(tensor, values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
    CHECK(status.message == "");
    return tensor;
  }
  template <class Op>
  uint64_t Enqueue(Op op) {
    uint64_t ticket = 0;
    const Status status = stream->Enqueue(std::make_unique<OpTask<Op>>(std::move(op)), &ticket);
    CHECK(status.message == "");
    return ticket;
  }

  std::unique_ptr<Gpu> gpu;
  std::shared_ptr<Stream> stream;
};

// Runs until it is let go.
class HoldTask final : public Task {
 public:
  explicit HoldTask(std::future<void> go) : go_(std::move(go)) {}
  void Run(uint64_t) override { go_.wait(); }

 private:
  const std::future<void> go_;
};

// What a stream's user sees of a read: the bytes, or why there are none.
class ReadTask final : public Task {
 public:
  struct Result {
    std::vector<std::byte> bytes;
    std::string code, message, op;
    bool done = false;
  };
  ReadTask(Tensor tensor, Result* result) : tensor_(std::move(tensor)), result_(result) {}
  bool touches_environment() const override { return true; }
  const char* name() const override { return "read"; }
  void Run(uint64_t ticket) override {
    Status status = BeginRead(tensor_, &staged_);
    if (!status.ok()) Fail({std::move(status), name(), ticket});
  }
  void Done(uint64_t, const Failure* lost) override {
    if (const Failure* failure = tensor_.storage->failure())
      Fail(*failure);
    else if (lost != nullptr)
      Fail(*lost);
    if (staged_) {
      result_->bytes.assign(staged_->data(),
                            staged_->data() + tensor_.size() * SizeOf(tensor_.dtype));
    }
    result_->done = true;
  }
  void Fail(const Failure& failure) override {
    result_->code = CodeName(failure.status.code);
    result_->message = failure.status.message;
    result_->op = failure.op;
  }

 private:
  Tensor tensor_;
  Result* result_;
  StorageRef staged_;
};

ReadTask::Result Read(Machine& m, const Tensor& tensor) {
  ReadTask::Result result;
  uint64_t ticket = 0;
  const Status status = m.stream->Enqueue(std::make_unique<ReadTask>(tensor, &result), &ticket);
  if (!status.ok()) {
    result.code = CodeName(status.code);
    result.message = status.message;
    return result;
  }
  m.stream->WaitFor(ticket);
  return result;
}

template <class T>
std::vector<T> Values(Machine& m, const Tensor& tensor) {
  const ReadTask::Result result = Read(m, tensor);
  CHECK(result.message == "");
  std::vector<T> values(result.bytes.size() / sizeof(T));
  std::memcpy(values.data(), result.bytes.data(), result.bytes.size());
  return values;
}

// A launch that writes where nothing is.
struct Wild {
  static constexpr const char* kName = "wild";
  Tensor out;
  template <class Visitor>
  void Visit(Visitor& v) {
    v.Out("out", out, kAnyType, {});
  }
};
Status Run(const Wild& p) {
  Launch& launch = Launch::Current();
  DeviceView view{p.out.address(), p.out.dtype, 1, {64}, {1 << 24}};
  launch.Run<DeviceCopy>(1, {view, view, 64, false});
  return launch.status();
}

TEST_CASE("GPU stream: elements go there and come back") {
  Machine m;
  const Tensor t = m.From<float>({1, 2.5f, -3});
  CHECK(Values<float>(m, t) == std::vector<float>{1, 2.5f, -3});
  const Tensor empty = m.New(DType::kF32, {0});
  CHECK(Read(m, empty).bytes.empty());
}

TEST_CASE("GPU stream: strided tensors are read row-major, and every type converts as on the CPU") {
  Machine m;
  std::vector<double> numbers{0,   1,    -2.5, 65520, 1e-8,       255.9,      -1,   256,
                              3e9, -3e9, 1e19, -1e19, 1.00390625, 1.01171875, 2049, 1e300};
  const double nan = std::numeric_limits<double>::quiet_NaN();
  numbers.insert(numbers.end(), {nan, INFINITY, -INFINITY, 1.0 + 0x1p-11 + 0x1p-40});
  const auto n = static_cast<int64_t>(numbers.size());
  const DType all[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF64,
                       DType::kI32, DType::kI64, DType::kU8};
  Tensor source = Tensor::Empty(DType::kF64, {n});
  std::memcpy(source.data<double>(), numbers.data(), numbers.size() * sizeof(double));
  std::vector<int64_t> large{INT64_MAX, INT64_MIN, (int64_t{1} << 53) + 1,
                             INT64_MIN + 0x400000000001, -7};
  while (static_cast<int64_t>(large.size()) < n) large.push_back(large.back() * -3 + 1);
  for (DType from : all) {
    Tensor cpu = Tensor::Empty(from, {n});
    if (from == DType::kI64) {
      std::memcpy(cpu.data<int64_t>(), large.data(), large.size() * 8);
    } else {
      REQUIRE(varlen::Run(Copy{source, cpu}).ok());
    }
    const Tensor gpu = m.New(from, {n});
    m.Enqueue(Copy{cpu, gpu});
    for (DType to : all) {
      CAPTURE(NameOf(from));
      CAPTURE(NameOf(to));
      Tensor want = Tensor::Empty(to, {n});
      REQUIRE(varlen::Run(Copy{cpu, want}).ok());
      const Tensor got = m.New(to, {n});
      m.Enqueue(Copy{gpu, got});
      const ReadTask::Result read = Read(m, got);
      REQUIRE(read.message == "");
      // NaN has many spellings.
      const auto nans = [&](std::byte* bytes) {
        for (int64_t i = 0; i < n; ++i) {
          if (to == DType::kF32) {
            float& x = reinterpret_cast<float*>(bytes)[i];
            if (x != x) x = -12345;
          } else if (to == DType::kF64) {
            double& x = reinterpret_cast<double*>(bytes)[i];
            if (x != x) x = -12345;
          } else if (to == DType::kF16 || to == DType::kBF16) {
            uint16_t& x = reinterpret_cast<uint16_t*>(bytes)[i];
            if ((x & 0x7fff) > (to == DType::kF16 ? 0x7c00 : 0x7f80)) x = 1;
          }
        }
      };
      std::vector<std::byte> bytes = read.bytes;
      nans(bytes.data());
      nans(want.data<std::byte>());
      CHECK(std::memcmp(bytes.data(), want.data<std::byte>(), bytes.size()) == 0);
    }
  }
  const Tensor rows = m.From<int32_t>({0, 1, 2, 3, 4, 5});
  Tensor turned = rows;
  turned.rank = 2;
  turned.shape = {3, 2};
  turned.strides = {1, 3};
  CHECK(Values<int32_t>(m, turned) == std::vector<int32_t>{0, 3, 1, 4, 2, 5});
}

TEST_CASE("GPU stream: sums go into a part of a larger tensor") {
  Machine m;
  const Tensor sum = m.From<float>({1, 2, 3, 4});
  const Tensor part = m.From<bfloat16>({bfloat16(0.5f), bfloat16(-2.0f)});
  Tensor target = sum;
  target.offset = 1;
  target.shape = {2};
  target.strides = {2};
  m.Enqueue(Accumulate{part, target});
  CHECK(Values<float>(m, sum) == std::vector<float>{1, 2.5f, 3, 2});
}

TEST_CASE("GPU stream: calls return while the GPU stands still, and end in their order") {
  Machine m;
  fake::Hold();
  const Tensor a = m.From<float>({1, 2});
  const Tensor b = m.New(DType::kF32, {2});
  uint64_t last = 0;
  for (int i = 0; i < 100; ++i) last = m.Enqueue(Copy{a, b});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(m.stream->enqueued() == last);
  CHECK(m.stream->completed() == 0);
  fake::Go();
  m.stream->WaitFor(last);
  CHECK(m.stream->completed() == last);
  CHECK(Values<float>(m, b) == std::vector<float>{1, 2});
}

TEST_CASE("GPU stream: what the GPU has not done counts against the cap of the queue") {
  Machine m;
  fake::Hold();
  const Tensor a = m.New(DType::kF32, {2}), b = m.New(DType::kF32, {2});
  std::atomic<int> appended = 0;
  std::thread program([&] {
    for (size_t i = 0; i < Stream::kMaxQueuedTasks + 10; ++i) {
      m.Enqueue(Copy{a, b});
      ++appended;
    }
  });
  for (int i = 0; i < 2000 && appended < int(Stream::kMaxQueuedTasks); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(appended == int(Stream::kMaxQueuedTasks));
  fake::Go();
  program.join();
}

TEST_CASE("GPU stream: a chain of ops that are disposed on the way holds a few blocks") {
  Machine m;
  fake::Hold();
  std::vector<float> start(1 << 18, 1.0f);  // 1 MiB
  Tensor t = m.From(start);
  t.storage->AddOwner();
  const int64_t before = m.gpu->memory().stats().reserved;
  for (int i = 0; i < 60; ++i) {
    const Tensor next = m.New(DType::kF32, {1 << 18});
    next.storage->AddOwner();
    m.Enqueue(Copy{t, next});
    t.storage->DropOwner();
    t = next;
  }
  CHECK(m.gpu->memory().stats().reserved - before <= 4 << 20);
  fake::Go();
  CHECK(Values<float>(m, t) == start);
  t.storage->DropOwner();
}

TEST_CASE("GPU memory: small blocks share segments, and neighbours become one again") {
  Machine m;
  DeviceMemory& memory = m.gpu->memory();
  std::vector<std::byte*> blocks;
  for (int i = 0; i < 20; ++i) blocks.push_back(memory.Take(int64_t{1} << 20));
  CHECK(memory.stats().reserved == DeviceMemory::kSmallSegment);
  for (int i : {3, 5, 4, 0, 19, 18}) memory.Give(blocks[static_cast<size_t>(i)], 1 << 20);
  // Three in a row are free, and hold what one of them does not.
  std::byte* again = memory.Take(int64_t{1} << 20);
  REQUIRE(again != nullptr);
  CHECK(memory.stats().reserved == DeviceMemory::kSmallSegment);
  std::byte* large = memory.Take((int64_t{5} << 20) + 1);
  CHECK(memory.stats().reserved == DeviceMemory::kSmallSegment + (6 << 20));
  memory.Give(large, (int64_t{5} << 20) + 1);
  memory.ReleaseSegments();
  CHECK(memory.stats().reserved == DeviceMemory::kSmallSegment);
  CHECK(fake::Count("allocate") == 2);
  memory.Give(again, 1 << 20);
  for (int i : {1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}) {
    memory.Give(blocks[static_cast<size_t>(i)], 1 << 20);
  }
  memory.ReleaseSegments();
  CHECK(memory.stats().reserved == 0);
}

TEST_CASE("GPU memory: exhaustion names the bytes asked for, held and free, and passes") {
  Machine m({.memory_bytes = int64_t{64} << 20});
  StorageRef most, more;
  REQUIRE(m.stream->Allocate(int64_t{40} << 20, Cache::Writer::kStream, &most).ok());
  const Status status = m.stream->Allocate(int64_t{30} << 20, Cache::Writer::kStream, &more);
  CHECK(status.code == Code::kOutOfMemory);
  CHECK(
      status.message ==
      "memory of cuda:0 is exhausted; got a request of 31457280 bytes, expected one that fits: "
      "this process holds 41943040 bytes (41943040 in tensors, 0 cached), 25165824 of 67108864 are "
      "free");
  REQUIRE(status.details.size() == 5);
  CHECK(status.details[1].first == std::string("heldBytes"));
  CHECK(status.details[1].second == 40 << 20);
  CHECK(status.details[2].first == std::string("cachedBytes"));
  CHECK(status.details[2].second == 0);
  most = {};
  CHECK(m.stream->Allocate(int64_t{30} << 20, Cache::Writer::kStream, &more).ok());
}

TEST_CASE("GPU memory: an allocation that fails once waits for the stream and is tried again") {
  Machine m;
  fake::FailNext("allocate", error::kMemoryAllocation);
  StorageRef storage;
  CHECK(m.stream->Allocate(1000, Cache::Writer::kStream, &storage).ok());
  CHECK(fake::Count("allocate") == 2);
}

TEST_CASE(
    "GPU failures: a refused launch fails its outputs with CUDA's name and the launch shape") {
  Machine m;
  const Tensor a = m.From<float>({1, 2}), b = m.New(DType::kBF16, {2}), c = m.New(DType::kF32, {2});
  fake::FailNext("launch", error::kLaunchOutOfResources);
  m.Enqueue(Copy{a, b});
  m.Enqueue(Copy{b, c});  // passes it on
  for (const Tensor& failed : {b, c}) {
    const ReadTask::Result read = Read(m, failed);
    CHECK(read.code == "ERR_VARLEN_CUDA");
    CHECK(read.op == "Tensor.to");
    CHECK(read.message ==
          "failed on cuda:0: cudaLaunchKernel gave cudaErrorLaunchOutOfResources for 1 blocks of "
          "256 threads with 0 bytes of shared memory, expected cudaSuccess");
  }
  CHECK(m.gpu->loss() == nullptr);
  CHECK(Values<float>(m, a) == std::vector<float>{1, 2});
}

TEST_CASE("GPU failures: every call that can fail once leaves an error and a working stream") {
  for (const char* call : {"create_stream", "copy", "allocate_pinned", "launch", "prepare"}) {
    CAPTURE(call);
    Machine m;
    for (auto& known : KernelOf<DeviceCopy>::image.resident) known = 0;
    const bool at_fill = std::string(call) == "allocate_pinned";
    fake::FailNext(call, error::kInvalidValue);
    if (at_fill) fake::FailNext(call, error::kInvalidValue);  // it is tried twice
    const Tensor a = m.New(DType::kF32, {2});
    const float values[] = {1, 2};
    Status status = m.stream->Fill(a, values, sizeof values);
    CHECK(status.ok() == !at_fill);
    const Tensor b = m.New(DType::kBF16, {2});
    m.Enqueue(Copy{a, b});
    const ReadTask::Result read = Read(m, b);
    if (at_fill) {
      CHECK(status.code == Code::kOutOfMemory);
    } else {
      CHECK(read.code == "ERR_VARLEN_CUDA");
      CHECK(read.message.find("cudaErrorInvalidValue") != std::string::npos);
    }
    CHECK(Values<float>(m, m.From<float>({4, 5})) == std::vector<float>{4, 5});
    CHECK(m.gpu->loss() == nullptr);
  }
}

TEST_CASE("GPU failures: an event that cannot be had loses the GPU instead of the answer") {
  for (const char* call : {"create_event", "record_event"}) {
    CAPTURE(call);
    Machine m;
    fake::FailNext(call, error::kInvalidValue);
    const Tensor a = m.New(DType::kF32, {1});
    Read(m, a);
    while (m.gpu->loss() == nullptr) std::this_thread::yield();
    CHECK(m.gpu->loss()->status.code == Code::kCuda);
    CHECK(Read(m, a).code == "ERR_VARLEN_DEVICE_LOST");
  }
}

TEST_CASE("GPU failures: a sticky error rejects what is pending, names the first op, and stays") {
  Machine m;
  const Tensor a = m.From<float>({1, 2});
  CHECK(Values<float>(m, a) == std::vector<float>{1, 2});
  fake::Hold();
  const Tensor wild = m.New(DType::kF32, {64}), after = m.New(DType::kBF16, {2});
  m.Enqueue(Wild{wild});
  m.Enqueue(Copy{a, after});
  ReadTask::Result pending;
  uint64_t ticket = 0;
  REQUIRE(m.stream->Enqueue(std::make_unique<ReadTask>(after, &pending), &ticket).ok());
  // All of it is on the GPU: a call that met the error itself would tell its own name.
  while (fake::Count("launch") < 2 || fake::Count("copy") < 3) std::this_thread::yield();
  fake::Go();
  m.stream->WaitFor(ticket);
  CHECK(pending.code == "ERR_VARLEN_CUDA");
  CHECK(pending.op == "wild");
  CHECK(pending.message.find("cudaErrorIllegalAddress") != std::string::npos);
  CHECK(fake::LastFault().find("global memory address") == 0);
  const ReadTask::Result later = Read(m, a);
  CHECK(later.code == "ERR_VARLEN_DEVICE_LOST");
  CHECK(later.message.find("cuda:0 is lost since wild failed on cuda:0") == 0);
  StorageRef storage;
  CHECK(m.stream->Allocate(int64_t{200} << 20, Cache::Writer::kStream, &storage).code ==
        Code::kDeviceLost);
}

TEST_CASE("GPU failures: a sticky error that a later call meets is the earlier op's") {
  Machine m;
  const Tensor a = m.From<float>({1, 2}), b = m.New(DType::kBF16, {2});
  CHECK(Values<float>(m, a).size() == 2);
  fake::Hold();
  const Tensor wild = m.New(DType::kF32, {64});
  m.Enqueue(Wild{wild});
  while (fake::Count("launch") < 1) std::this_thread::yield();
  fake::FailNext("launch", error::kLaunchFailure);
  m.Enqueue(Copy{a, b});
  while (m.gpu->loss() == nullptr) std::this_thread::yield();
  CHECK(std::string(m.gpu->loss()->op) == "wild");
  CHECK(m.gpu->loss()->status.texts[0].second == "cudaErrorLaunchFailure");
  fake::Go();
}

TEST_CASE("GPU stream: closing it leaves reads under way alone and drops the rest") {
  Machine m;
  const Tensor a = m.From<float>({1, 2});
  CHECK(Values<float>(m, a).size() == 2);
  fake::Hold();
  auto result = std::make_unique<ReadTask::Result>();
  uint64_t ticket = 0;
  REQUIRE(m.stream->Enqueue(std::make_unique<ReadTask>(a, result.get()), &ticket).ok());
  while (fake::Count("copy") < 3) std::this_thread::yield();
  m.stream->Close();
  CHECK_FALSE(result->done);
  result.reset();  // the environment is gone; what comes back goes nowhere
  fake::Go();
  CHECK(m.stream->Enqueue(std::make_unique<ReadTask>(a, nullptr), &ticket).code == Code::kDisposed);
}

TEST_CASE("GPU stream: another stream waits on the GPU for what this one writes") {
  Machine m;
  auto other = GpuStream::New(*m.gpu);
  fake::Hold();
  const Tensor a = m.From<float>({3, 4});
  const Tensor b = m.New(DType::kF32, {2});
  const uint64_t ticket = m.Enqueue(Copy{a, b});
  REQUIRE(other->After(m.stream, ticket).ok());
  ReadTask::Result result;
  uint64_t last = 0;
  REQUIRE(other->Enqueue(std::make_unique<ReadTask>(b, &result), &last).ok());
  while (fake::Count("wait_event") == 0) std::this_thread::yield();
  fake::Go();
  other->WaitFor(last);
  float values[2];
  REQUIRE(result.bytes.size() == sizeof values);
  std::memcpy(values, result.bytes.data(), sizeof values);
  CHECK(values[0] == 3);
  CHECK(values[1] == 4);
  other->Finish();
}

TEST_CASE("GPU stream: a stream that waits for the CPU first reports what the CPU waits for") {
  Machine m;
  const auto cpu = Stream::New();
  const Tensor a = m.From<float>({3, 4});
  const Tensor b = m.New(DType::kF32, {2});
  std::promise<void> queued;
  uint64_t ticket = 0;
  // Holds the GPU stream's thread: it finds the rest in its queue and is never without a task.
  REQUIRE(m.stream->Enqueue(std::make_unique<HoldTask>(queued.get_future()), &ticket).ok());
  const uint64_t copied = m.Enqueue(Copy{a, b});
  REQUIRE(cpu->After(m.stream, copied).ok());
  std::promise<void> open;
  open.set_value();
  uint64_t done = 0;
  REQUIRE(cpu->Enqueue(std::make_unique<HoldTask>(open.get_future()), &done).ok());
  REQUIRE(m.stream->After(cpu, done).ok());
  queued.set_value();
  for (int i = 0; i < 2000 && cpu->completed() < done; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(cpu->completed() == done);
  cpu->Close();
}

TEST_CASE("GPU stream: pinned memory is used again, and only when its copy is done") {
  Machine m;
  fake::Hold();
  std::vector<Tensor> tensors;
  for (float i = 0; i < 8; ++i) tensors.push_back(m.From<float>(std::vector<float>(1000, i)));
  CHECK(m.gpu->pinned_stats().reserved >= 8 * 4000);  // none could be shared
  fake::Go();
  for (float i = 0; i < 8; ++i) {
    CHECK(Values<float>(m, tensors[static_cast<size_t>(i)]) == std::vector<float>(1000, i));
  }
  const int64_t reserved = m.gpu->pinned_stats().reserved;
  for (int i = 0; i < 20; ++i)
    CHECK(Values<float>(m, m.From<float>(std::vector<float>(1000, 7))).size() == 1000);
  CHECK(m.gpu->pinned_stats().reserved == reserved);
}

}  // namespace
}  // namespace varlen::cuda
