#include "core/cuda/stream.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "core/cuda/launch.h"
#include "core/op_task.h"

namespace varlen::cuda {

std::shared_ptr<Stream> GpuStream::New(Gpu& gpu) {
  return std::shared_ptr<Stream>(new GpuStream(gpu));
}

GpuStream::~GpuStream() {
  scratch_->Abandon();
  if (stream_ == nullptr) return;
  gpu_.worker().Post([&gpu = gpu_, stream = stream_] {
    gpu.Enter();
    gpu.NoteError(gpu.api().destroy_stream(stream), "cudaStreamDestroy");
  });
}

Status GpuStream::CheckDevice() const {
  return gpu_.loss() == nullptr ? Status{} : gpu_.LostStatus();
}

void GpuStream::Execute(std::unique_ptr<Task> task, uint64_t ticket) {
  InFlight entry{ticket, task->bytes, std::move(task), {}, {}};
  const bool awaited = entry.task->awaited();
  if (gpu_.loss() == nullptr) Begin(entry);
  bool submit = awaited;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_flight_.push_back(std::move(entry));
    launched_ = ticket;
    progressed_.notify_all();
    submit = submit || launched_ - submitted_ >= kBatch;
  }
  if (submit) Submit();
}

void GpuStream::Begin(InFlight& entry) {
  gpu_.Enter();
  if (stream_ == nullptr) {
    Status status = gpu_.ErrorOf(gpu_.api().create_stream(&stream_), "cudaStreamCreate");
    if (!status.ok())
      return entry.task->Fail({std::move(status), entry.task->name(), entry.ticket});
  }
  // What the launch takes and gives back belongs to this ticket.
  scratch_progress_->enqueued.store(entry.ticket, std::memory_order_release);
  Launch launch(gpu_, stream_, *scratch_, [this] {
    Trim();  // what tensors left behind
    gpu_.memory().ReleaseSegments();
  });
  {
    const LaunchScope scope(&launch);
    entry.task->Run(entry.ticket);
  }
  if (launch.sticky()) {
    // Found by this call; the first unfinished one may have caused it.
    gpu_.Lose(Blame(launch.status(), entry.task->name(), entry.ticket));
  }
  entry.kept = std::move(launch.kept());
  entry.checks = std::move(launch.checks());
}

void GpuStream::Flush() { Submit(); }

bool GpuStream::WaitLaunched(uint64_t ticket, const std::atomic<bool>& give_up) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (launched_ < ticket) {
    if (closed().load() || give_up.load()) return false;
    // Whoever closes a stream does not know this lock, so it is looked at now and then.
    progressed_.wait_for(lock, std::chrono::milliseconds(1));
  }
  return true;
}

void GpuStream::WaitOn(Stream& other, uint64_t ticket) {
  // What `other` is busy with may itself wait for what was launched here.
  Submit();
  auto* peer = dynamic_cast<GpuStream*>(&other);
  if (peer == nullptr || &peer->gpu_ != &gpu_) return Stream::WaitOn(other, ticket);
  if (!peer->WaitLaunched(ticket, closed())) return;
  // The waiter ends the other's tasks first: failures pass on in that order.
  peer->Submit();
  void* event = peer->stream_ == nullptr ? nullptr : gpu_.TakeEvent();
  if (event == nullptr) return Stream::WaitOn(other, ticket);
  int error = gpu_.api().record_event(event, peer->stream_);
  if (error == error::kSuccess) error = gpu_.api().wait_event(stream_, event);
  Launch::Current().OnDone([&gpu = gpu_, event]() -> Status {
    gpu.ReturnEvent(event);
    return {};
  });
  if (error != error::kSuccess) Stream::WaitOn(other, ticket);
}

void GpuStream::Submit() {
  // Batches come to the waiter in their order.
  const std::lock_guard<std::mutex> in_order(submit_mutex_);
  uint64_t ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (launched_ == submitted_) return;
    ticket = submitted_ = launched_;
  }
  gpu_.Enter();
  int error = error::kSuccess;
  void* event = nullptr;
  if (stream_ != nullptr) {  // else nothing ever ran on it
    event = gpu_.TakeEvent();
    error = event == nullptr ? error::kUnknown : gpu_.api().record_event(event, stream_);
  }
  auto self = std::static_pointer_cast<GpuStream>(shared_from_this());
  gpu_.waiter().Post(
      [self = std::move(self), ticket, event, error] { self->Retire(ticket, event, error); });
}

void GpuStream::Retire(uint64_t ticket, void* event, int error) {
  gpu_.Enter();
  // Without an event the GPU, unless it is dead, may still be at work on what is freed below.
  const bool at_work = event == nullptr ? gpu_.loss() == nullptr : !IsSticky(error);
  const bool unseen = stream_ != nullptr && error != error::kSuccess && at_work;
  if (unseen) (void)gpu_.api().synchronize_stream(stream_);
  if (event != nullptr && error == error::kSuccess) {
    error = gpu_.api().synchronize_event(event);
  }
  if (error != error::kSuccess) {
    gpu_.Lose(Blame(gpu_.ErrorOf(error, "cudaEventSynchronize"), "", 0));
  }
  gpu_.ReturnEvent(event);
  const Failure* lost = gpu_.loss();
  for (;;) {
    InFlight entry;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (in_flight_.empty() || in_flight_.front().ticket > ticket) return;
      entry = std::move(in_flight_.front());
      in_flight_.pop_front();
    }
    End(entry, lost);
  }
}

void GpuStream::End(InFlight& entry, const Failure* lost) {
  const bool touches = entry.task->touches_environment();
  if (!touches || EnterEnvironment()) {
    entry.task->Done(entry.ticket, lost);
    // Of several failures the first stays: those of the inputs, then these in their order.
    for (const auto& check : entry.checks) {
      if (lost != nullptr) break;
      Status status = Guarded(check);
      if (!status.ok()) entry.task->Fail({std::move(status), entry.task->name(), entry.ticket});
    }
  }
  entry.task.reset();
  entry.kept.clear();
  if (touches) LeaveEnvironment();
  scratch_progress_->completed.store(entry.ticket, std::memory_order_release);
  Complete(entry.ticket, entry.bytes);
}

Failure GpuStream::Blame(Status status, const char* op, uint64_t call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const InFlight& entry : in_flight_) {
    if (entry.task->name()[0] != '\0') return {std::move(status), entry.task->name(), entry.ticket};
  }
  return {std::move(status), op, call};
}

void GpuStream::Reclaim() {
  Stream::Reclaim();
  scratch_->Trim(0);
  gpu_.memory().ReleaseSegments();
}

namespace {

// Host memory on its way to the GPU.
class FillTask final : public Task {
 public:
  FillTask(Tensor tensor, StorageRef pinned, const std::byte* source, int64_t size, const char* op)
      : tensor_(std::move(tensor)),
        pinned_(std::move(pinned)),
        source_(source),
        size_(size),
        op_(op) {
    bytes = size;
  }
  const char* name() const override { return op_; }
  void Run(uint64_t ticket) override {
    Launch& launch = Launch::Current();
    launch.Copy(tensor_.address(), source_, size_, CopyKind::kHostToDevice);
    launch.Keep(pinned_);
    if (!launch.ok()) Fail({launch.status(), name(), ticket});
  }
  void Done(uint64_t, const Failure* lost) override {
    if (lost != nullptr) Fail(*lost);
  }
  void Fail(const Failure& failure) override { tensor_.storage->Fail(failure); }

 private:
  const Tensor tensor_;
  const StorageRef pinned_;
  const std::byte* const source_;
  const int64_t size_;
  const char* const op_;
};

}  // namespace

Status GpuStream::Fill(const Tensor& tensor, const void* source, int64_t bytes) {
  StorageRef pinned;
  if (Status status = gpu_.AllocatePinned(bytes, &pinned); !status.ok()) return status;
  std::memcpy(pinned->data(), source, static_cast<size_t>(bytes));
  const std::byte* staged = pinned->data();
  return FillFrom(tensor, std::move(pinned), staged, bytes, "Tensor.from");
}

Status GpuStream::FillFrom(const Tensor& tensor, StorageRef pinned, const std::byte* source,
                           int64_t bytes, const char* op) {
  uint64_t ticket = 0;
  Status status =
      Enqueue(std::make_unique<FillTask>(tensor, std::move(pinned), source, bytes, op), &ticket);
  if (status.ok()) tensor.storage->WrittenBy(shared_from_this(), ticket);
  return status;
}

}  // namespace varlen::cuda
