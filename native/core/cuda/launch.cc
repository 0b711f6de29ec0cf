#include "core/cuda/launch.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace varlen::cuda {
namespace {

thread_local Launch* t_launch = nullptr;

std::string Describe(const LaunchShape& shape) {
  return std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
         " threads with " + std::to_string(shape.shared_bytes) + " bytes of shared memory";
}

}  // namespace

Launch& Launch::Current() { return *t_launch; }

LaunchScope::LaunchScope(Launch* launch) { t_launch = launch; }
LaunchScope::~LaunchScope() { t_launch = nullptr; }

void Launch::Note(int error, const char* call, const std::string& launch, const Site& site) {
  if (error == error::kSuccess || !ok()) return;
  status_ = gpu_.ErrorOf(error, call, launch, site);
  if (IsSticky(error)) sticky_ = true;
}

void* Launch::TakeScratch(int64_t bytes) {
  if (!ok() || bytes == 0) return nullptr;
  StorageRef storage;
  Status status = scratch_.Allocate(bytes, Cache::Writer::kStream, &storage);
  if (!status.ok() && reclaim_) {
    reclaim_();
    status = scratch_.Allocate(bytes, Cache::Writer::kStream, &storage);
  }
  if (!status.ok()) {
    status_ = std::move(status);
    return nullptr;
  }
  scratches_.push_back(storage);
  return storage->data();
}

void Launch::CopyIn(void* device, const void* host, int64_t bytes) {
  if (!ok() || bytes == 0) return;
  StorageRef pinned;
  if (Status status = gpu_.AllocatePinned(bytes, &pinned); !status.ok()) {
    status_ = std::move(status);
    return;
  }
  std::memcpy(pinned->data(), host, static_cast<size_t>(bytes));
  Copy(device, pinned->data(), bytes, CopyKind::kHostToDevice);
  Keep(std::move(pinned));
}

const void* Launch::CopyOut(const void* device, int64_t bytes) {
  if (!ok() || bytes == 0) return nullptr;
  StorageRef pinned;
  if (Status status = gpu_.AllocatePinned(bytes, &pinned); !status.ok()) {
    status_ = std::move(status);
    return nullptr;
  }
  Copy(pinned->data(), device, bytes, CopyKind::kDeviceToHost);
  Keep(pinned);
  return pinned->data();
}

void Launch::Copy(void* to, const void* from, int64_t bytes, CopyKind kind, Site site) {
  if (!ok() || bytes == 0) return;
  Note(gpu_.api().copy(to, from, bytes, kind, stream_), "cudaMemcpyAsync",
       std::to_string(bytes) + " bytes", site);
}

void Launch::Fill(void* data, int byte, int64_t bytes, Site site) {
  if (!ok() || bytes == 0) return;
  Note(gpu_.api().fill(data, byte, bytes, stream_), "cudaMemsetAsync",
       std::to_string(bytes) + " bytes", site);
}

simt::TensorMap Launch::MapOf(const simt::TensorMapShape& shape, Site site) {
  simt::TensorMap map{};
  if (ok()) Note(gpu_.api().encode(&map, shape), "cuTensorMapEncodeTiled", "", site);
  return map;
}

void Launch::Start(KernelImage& kernel, int64_t blocks, const void* params, const Site& site) {
  if (!ok()) return;
  std::atomic<int>& known = kernel.resident[static_cast<size_t>(gpu_.index())];
  int resident = known.load(std::memory_order_relaxed);
  if (resident == 0) {
    const int error = gpu_.api().prepare(kernel, &resident);
    Note(error, "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
         Describe({0, kernel.threads, kernel.shared_bytes}), site);
    if (!ok()) return;
    resident = std::max(resident, 1);
    known.store(resident, std::memory_order_relaxed);
  }
  const int64_t most = int64_t{multiprocessors()} * resident;
  const LaunchShape shape{std::clamp<int64_t>(blocks, 1, most), kernel.threads,
                          kernel.shared_bytes};
  Note(gpu_.api().launch(kernel, shape, params, stream_), "cudaLaunchKernel", Describe(shape),
       site);
}

bool Launch::Multiply(const MatrixProduct& product, Site site) {
  if (!ok()) return true;
  CublasLt& library = gpu_.cublas_lt();
  const auto plan = library.PlanFor(product);
  if (plan == nullptr) return false;
  void* workspace = TakeScratch(CublasLt::WorkspaceBytes(*plan));
  if (!ok()) return true;
  if (const int error = library.Run(*plan, product, workspace, stream_); error != 0) {
    status_ = gpu_.CublasErrorOf(library.NameOf(error), "cublasLtMatmul", product.Describe(), site);
  }
  return true;
}

void Launch::Mark(std::function<void(double ms)> passed) {
  if (!ok()) return;
  void* event = gpu_.TakeEvent();
  if (event == nullptr) return;
  Note(gpu_.api().record_event(event, stream_), "cudaEventRecord", "", Site::current());
  // The event goes back even so.
  checks_.push_back([&gpu = gpu_, event, passed = std::move(passed)]() -> Status {
    gpu.Enter();
    passed(gpu.TimeOf(event));
    gpu.ReturnEvent(event);
    return {};
  });
}

}  // namespace varlen::cuda
