#include "core/cuda/gpu.h"

#include <array>
#include <cstring>
#include <limits>

#include "core/cuda/kernel.h"

namespace varlen::cuda {
namespace {

thread_local const Gpu* t_entered = nullptr;

const char* FileOf(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return slash == nullptr ? site.file_name() : slash + 1;
}

}  // namespace

Gpu& Gpu::At(int index) {
  static std::mutex mutex;
  static std::array<Gpu*, kMaxDevices> gpus{};
  const std::lock_guard<std::mutex> lock(mutex);
  Gpu*& gpu = gpus[static_cast<size_t>(index)];
  if (gpu == nullptr) gpu = new Gpu(ThisCudaRuntime(), index);
  return *gpu;
}

Gpu::Gpu(const CudaRuntime& api, int index)
    : api_(api),
      index_(index),
      memory_(*this),
      pinned_memory_(*this),
      pinned_(Cache::New(std::make_shared<Progress>(), pinned_memory_)) {
  CudaDevice device;
  if (api.device(&device, index) != error::kSuccess) return;
  multiprocessors_ = device.multiprocessors;
  compute_major_ = device.compute_major;
}

Gpu::~Gpu() {
  waiter_.Call([] {});  // events that are under way
  pinned_->Trim(0);
  pinned_->Abandon();
  memory_.ReleaseSegments();
  worker_.Call([this] {
    Enter();
    for (void* event : events_) (void)api_.destroy_event(event);
    if (epoch_ != nullptr) (void)api_.destroy_event(epoch_);
    cublas_lt_.reset();
  });
  delete loss_.load();
  if (t_entered == this) t_entered = nullptr;
}

void Gpu::Enter() {
  if (t_entered == this) return;
  if (api_.set_device(index_) == error::kSuccess) t_entered = this;
}

Status Gpu::AllocatePinned(int64_t bytes, StorageRef* storage) {
  return pinned_->Allocate(bytes, Cache::Writer::kHost, storage);
}

void* Gpu::TakeEvent() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!events_.empty()) {
    void* event = events_.back();
    events_.pop_back();
    return event;
  }
  void* event = nullptr;
  if (const int error = api_.create_event(&event); error != error::kSuccess) {
    NoteError(error, "cudaEventCreate");
    return nullptr;
  }
  return event;
}

void Gpu::ReturnEvent(void* event) {
  if (event == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  events_.push_back(event);
}

double Gpu::TimeOf(void* event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (epoch_ == nullptr) {
    // The first event asked about becomes the start of the clock.
    void* stream = nullptr;
    if (api_.create_stream(&stream) != error::kSuccess) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    if (api_.create_event(&epoch_) == error::kSuccess) {
      NoteError(api_.record_event(epoch_, stream), "cudaEventRecord");
      NoteError(api_.synchronize_event(epoch_), "cudaEventSynchronize");
    }
    NoteError(api_.destroy_stream(stream), "cudaStreamDestroy");
  }
  float ms = 0;
  // Events before the epoch have negative times: CUDA answers those too, the other way round.
  if (api_.elapsed_ms(&ms, epoch_, event) != error::kSuccess) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return ms;
}

CublasLt& Gpu::cublas_lt() {
  std::call_once(cublas_lt_opened_, [this] {
    cublas_lt_ = std::make_unique<CublasLt>(api_.cublas_lt == nullptr ? std::vector<std::string>{}
                                                                      : api_.cublas_lt());
  });
  return *cublas_lt_;
}

Status Gpu::ErrorOf(int error, const char* call, const std::string& launch, Site site) {
  if (error == error::kSuccess) return {};
  const Code code = error == error::kMemoryAllocation ? Code::kOutOfMemory : Code::kCuda;
  return Failed(code, api_.error_name(error), "cudaSuccess", call, launch, site);
}

Status Gpu::CublasErrorOf(const std::string& name, const char* call, const std::string& launch,
                          Site site) {
  return Failed(Code::kCuda, name, "CUBLAS_STATUS_SUCCESS", call, launch, site);
}

Status Gpu::Failed(Code code, const std::string& got, const char* expected, const char* call,
                   const std::string& launch, const Site& site) const {
  Status status;
  status.code = code;
  status.message = std::string("failed on cuda:") + std::to_string(index_) + ": " + call +
                   " gave " + got + (launch.empty() ? "" : " for " + launch) + ", expected " +
                   expected;
  status.texts = {{"cudaError", got},
                  {"cudaCall", call},
                  {"launch", launch},
                  {"where", std::string(FileOf(site)) + ":" + std::to_string(site.line())}};
  return status;
}

void Gpu::NoteError(int error, const char* call, Site site) {
  if (IsSticky(error)) Lose({ErrorOf(error, call, "", site), "", 0});
}

void Gpu::Lose(const Failure& failure) {
  const auto* loss = new Failure(failure);
  const Failure* expected = nullptr;
  if (!loss_.compare_exchange_strong(expected, loss, std::memory_order_acq_rel)) delete loss;
}

Status Gpu::LostStatus() const {
  const Failure& first = *loss();
  const std::string op = first.op[0] == '\0' ? "an earlier call" : first.op;
  Status status;
  status.code = Code::kDeviceLost;
  status.message = "cuda:" + std::to_string(index_) + " is lost since " + op + " " +
                   first.status.message + "; only a new process can use it again";
  status.texts = first.status.texts;
  return status;
}

}  // namespace varlen::cuda
