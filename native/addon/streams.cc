#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "addon/entry.h"
#include "core/cuda/launch.h"
#include "core/cuda/probe.h"

// Streams and events as JavaScript sees them: small numbers.
namespace varlen::addon {
namespace {

double NowMs() {
  using Milliseconds = std::chrono::duration<double, std::milli>;
  return Milliseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Notes when the stream passes it, and tells JavaScript when somebody waits.
class MarkTask final : public Task {
 public:
  MarkTask(Device device, std::shared_ptr<std::atomic<double>> time_ms,
           std::unique_ptr<Settlement> settlement, std::shared_ptr<Mailbox> mailbox)
      : device_(device),
        time_ms_(std::move(time_ms)),
        settlement_(std::move(settlement)),
        mailbox_(std::move(mailbox)) {}

  bool touches_environment() const override { return settlement_ != nullptr; }
  bool awaited() const override { return true; }
  void Run(uint64_t) override {
    if (time_ms_ == nullptr || device_.kind == DeviceKind::kCpu) return;
    cuda::Launch::Current().Mark([time_ms = time_ms_](double ms) { time_ms->store(ms); });
  }
  void Done(uint64_t, const Failure* lost) override {
    if (time_ms_ != nullptr && device_.kind == DeviceKind::kCpu) time_ms_->store(NowMs());
    if (settlement_ == nullptr) return;
    settlement_->outcome.Look(lost);
    mailbox_->Post(std::move(settlement_));
  }

 private:
  const Device device_;
  std::shared_ptr<std::atomic<double>> time_ms_;
  std::unique_ptr<Settlement> settlement_;
  std::shared_ptr<Mailbox> mailbox_;
};

// args: device. result: the stream's id.
bool NewStream(Env& env, const Arguments&) {
  const std::optional<Device> device = DeviceAt(env, env.args[0]);
  if (!device.has_value()) return false;
  env.result[0] = env.AddStream(*device);
  return true;
}

// args: stream.
bool DisposeStream(Env& env, const Arguments&) {
  env.RemoveStream(env.args[0]);
  return true;
}

// args: stream. result: the event's id.
bool Record(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  auto time = std::make_shared<std::atomic<double>>(std::numeric_limits<double>::quiet_NaN());
  uint64_t ticket = 0;
  Status status = stream->Enqueue(
      std::make_unique<MarkTask>(stream->device(), time, nullptr, nullptr), &ticket);
  if (!status.ok()) return Fail(env, std::move(status));
  env.result[0] = env.AddEvent({stream, ticket, std::move(time)});
  return true;
}

// args: stream, event.
bool Wait(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  const Event* event = env.FindEvent(env.args[1]);
  if (event == nullptr) return true;
  Status status = stream->After(event->stream, event->ticket);
  return status.ok() || Fail(env, std::move(status));
}

// args: stream, id, event or -1, tensor or 0. Env::on_settled(id) is called when the stream, or the
// event's, has done what it has now, with the failure of the tensor at that time.
bool Notify(Env& env, const Arguments&) {
  const Event* event = env.FindEvent(env.args[2]);
  const auto stream = event != nullptr ? event->stream : StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  const Tensor* tensor = env.Find(env.args[3]);
  return SettleAfter(env, stream, env.args[1], tensor == nullptr ? StorageRef() : tensor->storage);
}

// args: event. result: when it was passed in milliseconds, NaN before that.
bool EventTime(Env& env, const Arguments&) {
  const Event* event = env.FindEvent(env.args[0]);
  env.result[0] =
      event == nullptr ? std::numeric_limits<double>::quiet_NaN() : event->time_ms->load();
  return true;
}

// args: event.
bool ReleaseEvent(Env& env, const Arguments&) {
  env.RemoveEvent(env.args[0]);
  return true;
}

}  // namespace

bool SettleAfter(Env& env, const std::shared_ptr<Stream>& stream, double id, StorageRef storage) {
  std::unique_ptr<Settlement> settlement(new Settlement{id, {}, nullptr});
  settlement->outcome.storage = std::move(storage);
  uint64_t ticket = 0;
  Status status = stream->Enqueue(
      std::make_unique<MarkTask>(stream->device(), nullptr, std::move(settlement), env.mailbox()),
      &ticket);
  if (!status.ok()) return Fail(env, std::move(status));
  env.BeginWait();
  return true;
}

std::optional<Device> DeviceAt(Env& env, double number) {
  if (number == -1) return Device{DeviceKind::kCpu, 0};
  const CudaStatus& status = CudaStatusOfThisProcess();
  if (!status.available()) {
    Fail(env, {Code::kNoCuda, "device", "is not available: " + status.reason, {}});
    return {};
  }
  const size_t known = std::min<size_t>(status.devices.size(), cuda::kMaxDevices);
  if (!(number >= 0 && number < static_cast<double>(known))) {
    Fail(env, {Code::kRange, "device", "names no GPU", {}});
    return {};
  }
  return Device{DeviceKind::kCuda, static_cast<int>(number)};
}

void BindStreams(Napi::Env env, Napi::Object exports) {
  Bind<NewStream>(env, exports, "newStream", "Stream");
  Bind<DisposeStream>(env, exports, "disposeStream", "Stream.dispose");
  Bind<Record>(env, exports, "record", "Stream.record");
  Bind<Wait>(env, exports, "wait", "Stream.wait");
  Bind<Notify>(env, exports, "notify", "Stream.synchronize");
  Bind<EventTime>(env, exports, "eventTime", "Event.ready");
  Bind<ReleaseEvent>(env, exports, "releaseEvent", "Event");
}

}  // namespace varlen::addon
