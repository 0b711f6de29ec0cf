#include "core/cuda/ipc.h"

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "core/cuda/gpu.h"

namespace varlen {
namespace {
std::atomic<const CudaIpc*> g_replaced{nullptr};
}

const CudaIpc& ThisCudaIpc() {
  if (const CudaIpc* replaced = g_replaced.load()) return *replaced;
  static const CudaIpc* const linked = new CudaIpc(LinkedCudaIpc());
  return *linked;
}

// Kept for ever: threads may outlive static objects.
void ReplaceCudaIpc(const CudaIpc& ipc) { g_replaced = new CudaIpc(ipc); }

namespace cuda {
namespace {

// A segment of another process.
struct Segment {
  Gpu* gpu = nullptr;
  std::byte* data = nullptr;
  int users = 0;
};
using SegmentKey = std::pair<int, IpcHandle>;  // GPU, handle

// Of the whole process; never destroyed.
struct Shared {
  std::mutex mutex;
  std::map<uint64_t, StorageRef> exports;
  uint64_t last_export = 0;
  std::map<SegmentKey, Segment> segments;
};

Shared& TheShared() {
  static Shared* const shared = new Shared;
  return *shared;
}

// The last user closes the segment: until then the exporter's memory is not free for the driver.
void ReleaseImport(void* key, Storage&) {
  auto* entry = static_cast<std::pair<const SegmentKey, Segment>*>(key);
  Shared& shared = TheShared();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  if (--entry->second.users > 0) return;
  Gpu* gpu = entry->second.gpu;
  gpu->worker().Post([gpu, data = entry->second.data] {
    gpu->Enter();
    gpu->NoteError(ThisCudaIpc().close_memory(data), "cudaIpcCloseMemHandle");
  });
  const SegmentKey gone = entry->first;
  shared.segments.erase(gone);
}

}  // namespace

Status UuidOf(Gpu& gpu, DeviceUuid* uuid) {
  return gpu.ErrorOf(ThisCudaIpc().uuid(uuid, gpu.index()), "cudaGetDeviceProperties");
}

Status ExportMemory(Gpu& gpu, const Tensor& tensor, IpcExport* exported) {
  if (gpu.loss() != nullptr) return gpu.LostStatus();
  auto* data = static_cast<std::byte*>(tensor.address());
  std::byte* segment = gpu.memory().SegmentOf(data, &exported->segment_bytes);
  if (segment == nullptr) {
    return {Code::kUnsupported,
            "this",
            "has memory that another process or library allocated, and only they can share it",
            {},
            {{"feature", "CUDA IPC of foreign memory"}}};
  }
  exported->byte_offset = data - segment;
  int error = error::kSuccess;
  gpu.worker().Call([&] {
    gpu.Enter();
    error = ThisCudaIpc().export_memory(&exported->handle, segment);
  });
  gpu.NoteError(error, "cudaIpcGetMemHandle");
  Status status = gpu.ErrorOf(error, "cudaIpcGetMemHandle");
  if (!status.ok()) return status;
  tensor.storage->MarkShared();  // its memory waits for the reference kept below
  Shared& shared = TheShared();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  exported->id = ++shared.last_export;
  shared.exports[exported->id] = tensor.storage;
  return {};
}

bool EndExport(uint64_t id) {
  StorageRef ended;  // goes after the lock
  Shared& shared = TheShared();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  const auto found = shared.exports.find(id);
  if (found == shared.exports.end()) return false;
  ended = std::move(found->second);
  shared.exports.erase(found);
  return true;
}

Status ImportMemory(Gpu& gpu, const IpcHandle& handle, int64_t byte_offset, int64_t bytes,
                    StorageRef* storage) {
  if (gpu.loss() != nullptr) return gpu.LostStatus();
  Shared& shared = TheShared();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  const auto [entry, opened] = shared.segments.try_emplace(SegmentKey{gpu.index(), handle});
  Segment& segment = entry->second;
  if (opened) {
    void* data = nullptr;
    int error = error::kSuccess;
    gpu.worker().Call([&] {
      gpu.Enter();
      error = ThisCudaIpc().open_memory(&data, handle);
    });
    if (error != error::kSuccess) {
      shared.segments.erase(entry);
      gpu.NoteError(error, "cudaIpcOpenMemHandle");
      return gpu.ErrorOf(error, "cudaIpcOpenMemHandle");
    }
    segment = {&gpu, static_cast<std::byte*>(data), 0};
  }
  *storage = StorageRef(new Storage(segment.data + byte_offset, bytes, ReleaseImport, &*entry));
  ++segment.users;
  (*storage)->MarkShared();  // queued calls may use it after its last owner left
  return {};
}

}  // namespace cuda
}  // namespace varlen
