#include "addon/env.h"

#include <cmath>
#include <utility>

#include "core/cuda/stream.h"

namespace varlen::addon {
namespace {

constexpr double kGeneration = 268435456.0;  // 2^28 slots; the rest of 53 bits counts their reuse
constexpr uint32_t kMaxGeneration = (1u << 24) - 1;

// V8 weighs native memory when it decides to collect; smaller steps than this are not worth a call.
constexpr int64_t kReportStep = int64_t{1} << 20;

}  // namespace

void Mailbox::Post(std::unique_ptr<Settlement> settlement) {
  bool signal = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Settlement>& end = first_ == nullptr ? first_ : last_->next;
    last_ = settlement.get();
    end = std::move(settlement);
    signal = !std::exchange(signalled_, true);
  }
  // From here the read belongs to the JavaScript side.
  if (signal) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

// One by one: the chain is as long as there were unread settlements, a recursion's stack is not.
Mailbox::~Mailbox() {
  while (first_ != nullptr) first_ = std::move(first_->next);
}

std::unique_ptr<Settlement> Mailbox::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  signalled_ = false;
  return std::move(first_);
}

Env::Env(Napi::Env env) : env_(env), mailbox_(std::make_shared<Mailbox>()) {
  slots_.resize(1);
  streams_.push_back({Stream::New(), true});
  // The order matters: the thread-safe function first, the cleanup hook after it. Hooks run last in
  // first out, so Close() runs while the function can still be called.
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "varlen"), 0, 1,
                                  nullptr, nullptr, this, CallJs, &wake_);
  napi_unref_threadsafe_function(env, wake_);  // an idle addon must not keep the process alive
  mailbox_->Open(wake_);
  env.AddCleanupHook([](Env* self) { self->Close(); }, this);
}

Env::~Env() = default;

Env* Env::Of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return static_cast<Env*>(data);
}

void Env::Close() {
  for (StreamSlot& slot : streams_) slot.stream->Close();
  for (LiveTensor& entry : live_) entry.Unlink();
  for (Slot& slot : slots_) {
    if (slot.tensor) slot.tensor.storage->DropOwner();
    slot.tensor = {};
  }
}

void Env::Reserve(size_t count) {
  if (slots_.capacity() - slots_.size() < count) slots_.reserve(2 * slots_.capacity() + count);
  while (live_.size() < slots_.capacity()) live_.emplace_back();
}

double Env::Add(Tensor tensor) {
  uint32_t index = free_slot_;
  if (index != 0) {
    free_slot_ = slots_[index].next_free;
  } else {
    index = static_cast<uint32_t>(slots_.size());
    while (live_.size() <= slots_.size()) live_.emplace_back();
    slots_.emplace_back();
  }
  if (tensor.storage->AddOwner()) held_bytes_ += tensor.storage->bytes();
  ++live_tensors_;
  live_[index].Link(tensor);
  Slot& slot = slots_[index];
  slot.tensor = std::move(tensor);
  return index + slot.generation * kGeneration;
}

Tensor* Env::Find(double handle) {
  if (!(handle > 0 && handle < 9007199254740992.0)) return nullptr;
  const auto generation = static_cast<uint32_t>(handle / kGeneration);
  const auto index = static_cast<size_t>(handle - generation * kGeneration);
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  return slot.generation == generation && slot.tensor ? &slot.tensor : nullptr;
}

bool Env::Remove(double handle) {
  Tensor* tensor = Find(handle);
  if (tensor == nullptr) return false;
  const auto index = static_cast<uint32_t>(handle - std::floor(handle / kGeneration) * kGeneration);
  Slot& slot = slots_[index];
  const int64_t bytes = tensor->storage->bytes();
  live_[index].Unlink();
  if (tensor->storage->DropOwner()) held_bytes_ -= bytes;
  slot.tensor = {};
  slot.generation = slot.generation == kMaxGeneration ? 1 : slot.generation + 1;
  slot.next_free = free_slot_;
  free_slot_ = index;
  --live_tensors_;
  return true;
}

std::shared_ptr<Stream> Env::FindStream(double id) const {
  if (!(id >= 0 && id < static_cast<double>(streams_.size()))) return nullptr;
  const StreamSlot& slot = streams_[static_cast<size_t>(id)];
  return slot.open ? slot.stream : nullptr;
}

double Env::AddStream(Device device) {
  const auto open = [device] {
    return device.kind == DeviceKind::kCpu ? Stream::New()
                                           : cuda::GpuStream::New(cuda::Gpu::At(device.index));
  };
  for (size_t i = 0; i < streams_.size(); ++i) {
    StreamSlot& slot = streams_[i];
    if (!slot.open && slot.stream.use_count() == 1) {  // no tensor, event or thread has it
      slot = {open(), true};
      return static_cast<double>(i);
    }
  }
  streams_.push_back({open(), true});
  return static_cast<double>(streams_.size() - 1);
}

bool Env::RemoveStream(double id) {
  if (!(id > 0) || FindStream(id) == nullptr) return false;
  StreamSlot& slot = streams_[static_cast<size_t>(id)];
  slot.open = false;
  slot.stream->Finish();
  return true;
}

double Env::AddEvent(Event event) {
  if (free_events_.empty()) {
    free_events_.reserve(events_.capacity() + 1);  // so that RemoveEvent cannot fail
    events_.push_back(std::move(event));
    return static_cast<double>(events_.size() - 1);
  }
  const size_t index = free_events_.back();
  free_events_.pop_back();
  events_[index] = std::move(event);
  return static_cast<double>(index);
}

const Event* Env::FindEvent(double id) const {
  if (!(id >= 0 && id < static_cast<double>(events_.size()))) return nullptr;
  const Event& event = events_[static_cast<size_t>(id)];
  return event.stream ? &event : nullptr;
}

void Env::RemoveEvent(double id) {
  if (FindEvent(id) == nullptr) return;
  const auto index = static_cast<size_t>(id);
  free_events_.push_back(index);
  events_[index] = {};
}

void Env::BeginWait() {
  if (waiting_++ == 0) napi_ref_threadsafe_function(env_, wake_);
}

void Env::CallJs(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is gone, and its promises with it
  Env* self = static_cast<Env*>(context);
  Napi::HandleScope scope(env);
  for (auto settlement = self->mailbox_->Take(); settlement != nullptr;
       settlement = std::move(settlement->next)) {
    if (--self->waiting_ == 0) napi_unref_threadsafe_function(env, self->wake_);
    try {
      Napi::HandleScope each(env);
      Napi::Value error = Napi::Env(env).Undefined();
      const Failure* failure = settlement->outcome.failure;
      if (failure != nullptr) error = ErrorOf(env, *failure);
      self->on_settled.Call({Napi::Number::New(env, settlement->id), error});
    } catch (const Napi::Error&) {
      // The environment is terminating: nobody is left to hear about it.
    }
  }
}

void Env::ReportMemory() {
  const int64_t moved = held_bytes_ - reported_bytes_;
  if (moved < kReportStep && moved > -kReportStep) return;
  int64_t total = 0;
  napi_adjust_external_memory(env_, moved, &total);
  reported_bytes_ = held_bytes_;
}

bool Fail(Env& env, Status status) {
  env.error = {std::move(status), env.op, 0};
  return false;
}

std::shared_ptr<Stream> StreamOf(Env& env, double id) {
  std::shared_ptr<Stream> stream = env.FindStream(id);
  if (stream == nullptr) Fail(env, {Code::kDisposed, "stream", "was disposed", {}});
  return stream;
}

Napi::Value ErrorOf(Napi::Env env, const Failure& failure) {
  const Status& status = failure.status;
  Napi::Object details = Napi::Object::New(env);
  for (const auto& [name, value] : status.details) details.Set(name, value);
  for (const auto& [name, value] : status.texts) details.Set(name, value);
  Napi::Object error = Napi::Object::New(env);
  error.Set("code", CodeName(status.code));
  error.Set("op", failure.op);
  error.Set("call", static_cast<double>(failure.call));
  error.Set("argument", status.argument);
  error.Set("message", status.message);
  error.Set("details", details);
  return error;
}

}  // namespace varlen::addon
