#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/cuda/gpu.h"
#include "core/cuda/kernel.h"
#include "core/tensor.h"

namespace varlen::cuda {

// What one task does on its stream. RunCuda of an op takes memory, launches kernels and leaves
// checks:
//
//   Launch& launch = Launch::Current();
//   auto* sums = launch.Scratch<double>(n);
//   launch.Run<Sum>(n, {launch.DataOf(p.cu_seqlens), sums});
//   return launch.status();
//
// The first failure stays, and what comes after it does nothing: no call needs a check of its own.
class Launch {
 public:
  // `scratch` is used by the stream's thread alone, so that its order is the stream's. `reclaim`
  // gives back to the GPU what nobody uses, when there is no more memory.
  Launch(Gpu& gpu, void* stream, Cache& scratch, std::function<void()> reclaim = {})
      : gpu_(gpu), stream_(stream), scratch_(scratch), reclaim_(std::move(reclaim)) {}
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  // Of the task that this thread runs.
  static Launch& Current();

  const Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  // The failure is one after which the GPU answers nothing else.
  bool sticky() const { return sticky_; }
  int multiprocessors() const { return gpu_.multiprocessors(); }
  // Does the GPU have TMA and wgmma, and this binary the kernel that uses them?
  template <class Kernel>
  bool HasSm90a() const {
    return gpu_.compute_major() == 9 && gpu_.api().has(KernelOf<Kernel>::image);
  }

  // Device memory for the kernels of this task, uninitialised; null when nothing is asked for or
  // after a failure.
  template <class T>
  T* Scratch(int64_t count) {
    return static_cast<T*>(TakeScratch(count * static_cast<int64_t>(sizeof(T))));
  }
  // A copy of host memory in device memory; `host` is read during the call.
  template <class T>
  const T* Upload(const T* host, int64_t count) {
    T* device = Scratch<T>(count);
    CopyIn(device, host, count * static_cast<int64_t>(sizeof(T)));
    return device;
  }
  // The same for later tasks of this stream as well, until the reference goes. Another stream finds
  // its own copy by `memory()`, which no other stream has while something of this one's is left.
  template <class T>
  const T* UploadAndKeep(const T* host, int64_t count, std::vector<StorageRef>* owner) {
    const T* device = Upload(host, count);
    if (device != nullptr) owner->push_back(scratches_.back());
    return device;
  }
  const void* memory() const { return &scratch_; }
  // Where a kernel finds the array: uploaded if it came from the host, null if it is absent.
  template <class T>
  const T* DataOf(const HostOrTensor<T>& array) {
    if (!array) return nullptr;
    return array.on_host() ? Upload(array.data(), array.size()) : array.data();
  }
  template <class T>
  static T* DataOf(const Tensor& tensor) {
    return tensor ? tensor.data<T>() : nullptr;
  }

  // A copy in host memory, to be read by checks.
  template <class T>
  const T* ReadBack(const T* device, int64_t count) {
    return static_cast<const T*>(CopyOut(device, count * static_cast<int64_t>(sizeof(T))));
  }
  // Called once everything above is done, in the order of the stream, but not after a failure: what
  // the check would read may not be there. A status that is not ok fails the task's outputs.
  void OnDone(std::function<Status()> check) {
    if (ok()) checks_.push_back(std::move(check));
  }
  // Keeps host memory that the GPU reads or writes until then.
  void Keep(StorageRef storage) { kept_.push_back(std::move(storage)); }

  // For a kernel's Params; the shape's tensor is device memory.
  simt::TensorMap MapOf(const simt::TensorMapShape& shape, Site site = Site::current());

  // A kernel whose blocks stride over their work: `blocks` of them, at least one, but no more than
  // the GPU holds at once.
  template <class Kernel>
  void Run(int64_t blocks, const typename Kernel::Params& params, Site site = Site::current()) {
    Start(KernelOf<Kernel>::image, blocks, &params, site);
  }
  // As many blocks as the GPU holds at once; each takes work until there is none.
  template <class Kernel>
  void RunPersistent(const typename Kernel::Params& params, Site site = Site::current()) {
    Start(KernelOf<Kernel>::image, INT64_MAX, &params, site);
  }

  // A product by cuBLASLt. False where there is no such library, or where it has no algorithm for
  // it: a kernel of ours does it then.
  bool Multiply(const MatrixProduct& product, Site site = Site::current());
  void Copy(void* to, const void* from, int64_t bytes, CopyKind kind, Site site = Site::current());
  void Fill(void* data, int byte, int64_t bytes, Site site = Site::current());
  // Notes when the stream passes this point, on the clock of the GPU.
  void Mark(std::function<void(double ms)> passed);

  // What outlives the call: kept until the task is done.
  std::vector<StorageRef>& kept() { return kept_; }
  std::vector<std::function<Status()>>& checks() { return checks_; }

 private:
  void* TakeScratch(int64_t bytes);
  void CopyIn(void* device, const void* host, int64_t bytes);
  const void* CopyOut(const void* device, int64_t bytes);
  void Start(KernelImage& kernel, int64_t blocks, const void* params, const Site& site);
  void Note(int error, const char* call, const std::string& launch, const Site& site);

  Gpu& gpu_;
  void* const stream_;
  Cache& scratch_;
  const std::function<void()> reclaim_;
  Status status_;
  bool sticky_ = false;
  std::vector<StorageRef> scratches_;
  std::vector<StorageRef> kept_;
  std::vector<std::function<Status()>> checks_;
};

// While it lives, `launch` is what Launch::Current() finds on this thread.
class LaunchScope {
 public:
  explicit LaunchScope(Launch* launch);
  ~LaunchScope();
  LaunchScope(const LaunchScope&) = delete;
  LaunchScope& operator=(const LaunchScope&) = delete;
};

}  // namespace varlen::cuda
