#include <chrono>
#include <cmath>
#include <limits>

#include "addon/entry.h"

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
  MarkTask(std::shared_ptr<std::atomic<double>> time_ms, std::unique_ptr<Settlement> settlement,
           std::shared_ptr<Mailbox> mailbox)
      : time_ms_(std::move(time_ms)),
        settlement_(std::move(settlement)),
        mailbox_(std::move(mailbox)) {}

  bool touches_environment() const override { return settlement_ != nullptr; }
  void Run(uint64_t) override {
    if (time_ms_ != nullptr) time_ms_->store(NowMs());
    if (settlement_ != nullptr) mailbox_->Post(std::move(settlement_));
  }

 private:
  std::shared_ptr<std::atomic<double>> time_ms_;
  std::unique_ptr<Settlement> settlement_;
  std::shared_ptr<Mailbox> mailbox_;
};

// Holds its stream until another one has passed an event.
class WaitTask final : public Task {
 public:
  WaitTask(std::shared_ptr<Stream> waiting, Event event)
      : waiting_(std::move(waiting)), event_(std::move(event)) {}

  void Run(uint64_t) override { event_.stream->WaitFor(event_.ticket, &waiting_->closed()); }

 private:
  std::shared_ptr<Stream> waiting_;
  Event event_;
};

// result: the stream's id.
bool NewStream(Env& env, const Arguments&) {
  env.result[0] = env.AddStream();
  return true;
}

// args: stream.
bool DisposeStream(Env& env, const Arguments&) {
  env.RemoveStream(env.args[0]);
  return true;
}

// args: stream. result: the event's id.
bool Record(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, "Stream.record", env.args[0]);
  if (stream == nullptr) return false;
  auto time = std::make_shared<std::atomic<double>>(std::numeric_limits<double>::quiet_NaN());
  uint64_t ticket = 0;
  Status status = stream->Enqueue(std::make_unique<MarkTask>(time, nullptr, nullptr), &ticket);
  if (!status.ok()) return Fail(env, "Stream.record", std::move(status));
  env.result[0] = env.AddEvent({stream, ticket, std::move(time)});
  return true;
}

// args: stream, event.
bool Wait(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, "Stream.wait", env.args[0]);
  if (stream == nullptr) return false;
  const Event* event = env.FindEvent(env.args[1]);
  if (event == nullptr || event->stream == stream) return true;  // its own order already holds
  uint64_t ticket = 0;
  Status status = stream->Enqueue(std::make_unique<WaitTask>(stream, *event), &ticket);
  return status.ok() || Fail(env, "Stream.wait", std::move(status));
}

// args: stream, id. Env::on_settled(id) is called when the stream has done what it has now.
bool Notify(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, "Stream.synchronize", env.args[0]);
  if (stream == nullptr) return false;
  std::unique_ptr<Settlement> settlement(new Settlement{env.args[1], {}, nullptr});
  uint64_t ticket = 0;
  Status status = stream->Enqueue(
      std::make_unique<MarkTask>(nullptr, std::move(settlement), env.mailbox()), &ticket);
  if (!status.ok()) return Fail(env, "Stream.synchronize", std::move(status));
  env.BeginWait();
  return true;
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

void BindStreams(Napi::Env env, Napi::Object exports) {
  Bind<NewStream>(env, exports, "newStream");
  Bind<DisposeStream>(env, exports, "disposeStream");
  Bind<Record>(env, exports, "record");
  Bind<Wait>(env, exports, "wait");
  Bind<Notify>(env, exports, "notify");
  Bind<EventTime>(env, exports, "eventTime");
  Bind<ReleaseEvent>(env, exports, "releaseEvent");
}

}  // namespace varlen::addon
