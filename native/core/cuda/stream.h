#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/cuda/gpu.h"
#include "core/stream.h"

namespace varlen::cuda {

// A stream of a GPU: the host queue of core/stream.h, whose thread launches each task on a CUDA
// stream of its own and goes on. The GPU's waiter learns from an event that a batch of tasks is
// done and ends them in order: what their checks found fails their outputs, their pinned memory is
// free, their promises settle. Then, not before, the queue counts them as completed.
//
// Memory goes in the order of the stream, as on the CPU: a block whose last owner has left serves
// the next call at once.
class GpuStream final : public Stream {
 public:
  // A batch that nobody waits for is reported when it has this many tasks, or when the stream's
  // thread has nothing to do. One event per task would cost a wake-up each.
  static constexpr int kBatch = 32;

  static std::shared_ptr<Stream> New(Gpu& gpu);
  ~GpuStream() override;

  Status Fill(const Tensor& tensor, const void* source, int64_t bytes) override;
  // Writes pinned memory into a contiguous tensor. `source` is read when the stream comes there.
  Status FillFrom(const Tensor& tensor, StorageRef pinned, const std::byte* source, int64_t bytes,
                  const char* op);

 protected:
  void Execute(std::unique_ptr<Task> task, uint64_t ticket) override;
  void Flush() override;
  // Another stream of this GPU is waited for by the GPU itself.
  void WaitOn(Stream& other, uint64_t ticket) override;
  Status CheckDevice() const override;
  size_t launched() const override { return static_cast<size_t>(taken() - completed()); }
  void Reclaim() override;

 private:
  struct InFlight {
    uint64_t ticket;
    int64_t bytes;
    std::unique_ptr<Task> task;
    std::vector<StorageRef> kept;
    std::vector<std::function<Status()>> checks;
  };

  explicit GpuStream(Gpu& gpu)
      : Stream({DeviceKind::kCuda, gpu.index()}, gpu.memory()),
        gpu_(gpu),
        scratch_progress_(std::make_shared<Progress>()),
        scratch_(Cache::New(scratch_progress_, gpu.memory())) {}
  // Launches what the task asks for.
  void Begin(InFlight& entry);
  void Submit();
  // Everything up to `ticket` is done, unless `error` says otherwise. The waiter's thread.
  void Retire(uint64_t ticket, void* event, int error);
  void End(InFlight& entry, const Failure* lost);
  // Until `ticket` was launched; false when this or the waiting stream was closed before that.
  bool WaitLaunched(uint64_t ticket, const std::atomic<bool>& give_up);
  // The failure in the name of the first unfinished op, else in the one given.
  Failure Blame(Status status, const char* op, uint64_t call);

  Gpu& gpu_;
  const std::shared_ptr<Progress> scratch_progress_;
  Cache* const scratch_;  // of launches; the stream's thread alone takes from it
  void* stream_ = nullptr;
  std::mutex submit_mutex_;
  std::mutex mutex_;  // of what follows
  std::deque<InFlight> in_flight_;
  std::condition_variable progressed_;  // launched_ rose
  uint64_t launched_ = 0;               // tickets
  uint64_t submitted_ = 0;              // tickets whose end the waiter will report
};

}  // namespace varlen::cuda
