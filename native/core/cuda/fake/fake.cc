#include "core/cuda/fake/fake.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

#include "core/cuda/kernel.h"
#include "core/memory.h"
#include "core/simt/host/global_memory.h"
#include "core/simt/host/launch.h"

namespace varlen::cuda::fake {
namespace {

using Clock = std::chrono::steady_clock;

// Of opening another process's memory; only the fake needs their numbers.
constexpr int kInvalidContext = 201, kMapFailed = 205;

struct Scripted {
  int error;
  int after;
};

struct World {
  std::mutex mutex;
  std::condition_variable changed;
  Machine machine;
  std::map<std::string, std::deque<Scripted>> script;
  std::map<std::string, int64_t> counts;
  std::map<void*, std::unique_ptr<simt::GlobalMemory>> memory;
  std::map<void*, int64_t> pinned;
  int64_t allocated = 0, pinned_bytes = 0;
  bool shares = false;
  int uuid = 0;
  std::map<void*, int> files;                                      // of shared memory
  std::map<void*, std::unique_ptr<simt::GlobalMemory>> of_others;  // of other processes
  bool held = false;
  double delay_ms = 0;
  int sticky = error::kSuccess;
  uint64_t seed = 0;
  std::string fault;
  std::vector<std::string> cublas_lt;
};

// Never destroyed: streams' threads may outlive main().
World& TheWorld() {
  static World* const world = new World;
  return *world;
}

// Counts the call and says how it goes: as scripted, or as everything goes after a sticky error.
int Enter(const char* call) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  ++w.counts[call];
  if (w.sticky != error::kSuccess) return w.sticky;
  std::deque<Scripted>& script = w.script[call];
  if (script.empty()) return error::kSuccess;
  if (script.front().after-- > 0) return error::kSuccess;
  const int error = script.front().error;
  script.pop_front();
  if (IsSticky(error)) w.sticky = error;
  return error;
}

Machine TheMachine() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.machine;
}

// A stream, and the thread that executes it.
struct Stream {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> queue;
  bool closed = false;

  void Push(std::function<void()> work) {
    const std::lock_guard<std::mutex> lock(mutex);
    queue.push_back(std::move(work));
    wake.notify_one();
  }
  void Serve() {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return !queue.empty() || closed; });
        if (queue.empty()) return;
        work = std::move(queue.front());
        queue.pop_front();
      }
      double delay_ms = 0;
      {
        World& w = TheWorld();
        std::unique_lock<std::mutex> lock(w.mutex);
        w.changed.wait(lock, [&] { return !w.held; });
        delay_ms = w.delay_ms;
      }
      if (delay_ms > 0) {
        std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(delay_ms));
      }
      work();
    }
  }
};
using StreamRef = std::shared_ptr<Stream>;
Stream& At(void* stream) { return **static_cast<StreamRef*>(stream); }

struct Event {
  std::mutex mutex;
  std::condition_variable passed;
  uint64_t recorded = 0, done = 0;
  Clock::time_point time;

  void Wait(uint64_t ticket) {
    std::unique_lock<std::mutex> lock(mutex);
    passed.wait(lock, [&] { return done >= ticket; });
  }
};
using EventRef = std::shared_ptr<Event>;
EventRef& EventAt(void* event) { return *static_cast<EventRef*>(event); }

bool Alive() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.sticky == error::kSuccess;
}

// --- the table ----------------------------------------------------------------------------------

int RuntimeVersion(int* version) {
  *version = TheMachine().runtime_version;
  return error::kSuccess;
}
int DriverVersion(int* version) {
  *version = TheMachine().driver_version;
  return error::kSuccess;
}
int DeviceCount(int* count) {
  *count = TheMachine().devices;
  return *count == 0 ? error::kNoDevice : error::kSuccess;
}
int Device(CudaDevice* device, int index) {
  const Machine machine = TheMachine();
  *device = {"emulated GPU " + std::to_string(index), machine.compute_major, 0,
             machine.multiprocessors, machine.memory_bytes};
  return error::kSuccess;
}
int KernelAttributes(int) {
  return TheMachine().compute_major < 8 ? error::kNoKernelImageForDevice : error::kSuccess;
}

const char* ErrorName(int error) {
  switch (error) {
    case error::kSuccess:
      return "cudaSuccess";
    case error::kInvalidValue:
      return "cudaErrorInvalidValue";
    case error::kMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case error::kInitialization:
      return "cudaErrorInitializationError";
    case error::kInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case error::kNoDevice:
      return "cudaErrorNoDevice";
    case kInvalidContext:
      return "cudaErrorDeviceUninitialized";
    case kMapFailed:
      return "cudaErrorMapBufferObjectFailed";
    case error::kNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case error::kIllegalAddress:
      return "cudaErrorIllegalAddress";
    case error::kLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case error::kLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaErrorUnknown";
  }
}

int SetDevice(int) { return Enter("set_device"); }

int MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  *total_bytes = w.machine.memory_bytes;
  *free_bytes = w.machine.memory_bytes - w.allocated;
  return error::kSuccess;
}

// Puts the pages of a file in the place of its own. Memory that whole pages hold begins with one.
bool MapFile(const simt::GlobalMemory& memory, int file) {
  return mmap(memory.data(), static_cast<size_t>(memory.bytes()), PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
}

int Allocate(void** data, int64_t bytes) {
  if (const int error = Enter("allocate"); error != error::kSuccess) return error;
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  if (bytes > w.machine.memory_bytes - w.allocated) return error::kMemoryAllocation;
  auto memory = std::make_unique<simt::GlobalMemory>((bytes + 255) / 256 * 256);
  *data = memory->data();
  w.allocated += bytes;
  if (w.shares) {
    const int file = memfd_create("emulated GPU", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, memory->bytes()) != 0 || !MapFile(*memory, file)) {
      return error::kMemoryAllocation;
    }
    w.files[*data] = file;
  }
  w.memory[*data] = std::move(memory);
  return error::kSuccess;
}

int Release(void* data) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  const auto found = w.memory.find(data);
  if (found == w.memory.end()) return error::kInvalidValue;
  w.allocated -= found->second->bytes();
  w.memory.erase(found);
  if (const auto file = w.files.find(data); file != w.files.end()) {
    close(file->second);
    w.files.erase(file);
  }
  return error::kSuccess;
}

int AllocatePinned(void** data, int64_t bytes) {
  if (const int error = Enter("allocate_pinned"); error != error::kSuccess) return error;
  *data = AllocateAligned(bytes);
  if (*data == nullptr) return error::kMemoryAllocation;
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.pinned[*data] = bytes;
  w.pinned_bytes += bytes;
  return error::kSuccess;
}

int ReleasePinned(void* data) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  const auto found = w.pinned.find(data);
  if (found == w.pinned.end()) return error::kInvalidValue;
  w.pinned_bytes -= found->second;
  w.pinned.erase(found);
  FreeAligned(data);
  return error::kSuccess;
}

int CreateStream(void** stream) {
  if (const int error = Enter("create_stream"); error != error::kSuccess) return error;
  auto made = std::make_shared<Stream>();
  std::thread([made] { made->Serve(); }).detach();
  *stream = new StreamRef(std::move(made));
  return error::kSuccess;
}

// What is queued still runs.
int DestroyStream(void* stream) {
  {
    Stream& s = At(stream);
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.closed = true;
    s.wake.notify_all();
  }
  delete static_cast<StreamRef*>(stream);
  return error::kSuccess;
}

int CreateEvent(void** event) {
  if (const int error = Enter("create_event"); error != error::kSuccess) return error;
  *event = new EventRef(std::make_shared<Event>());
  return error::kSuccess;
}

int DestroyEvent(void* event) {
  delete static_cast<EventRef*>(event);
  return error::kSuccess;
}

int RecordEvent(void* event, void* stream) {
  if (const int error = Enter("record_event"); error != error::kSuccess) return error;
  EventRef e = EventAt(event);
  uint64_t ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(e->mutex);
    ticket = ++e->recorded;
  }
  At(stream).Push([e = std::move(e), ticket] {
    const std::lock_guard<std::mutex> lock(e->mutex);
    e->done = ticket;
    e->time = Clock::now();
    e->passed.notify_all();
  });
  return error::kSuccess;
}

int WaitEvent(void* stream, void* event) {
  if (const int error = Enter("wait_event"); error != error::kSuccess) return error;
  EventRef e = EventAt(event);
  uint64_t ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(e->mutex);
    ticket = e->recorded;
  }
  At(stream).Push([e = std::move(e), ticket] { e->Wait(ticket); });
  return error::kSuccess;
}

int SynchronizeStream(void* stream) {
  const auto end = std::make_shared<Event>();
  At(stream).Push([end] {
    const std::lock_guard<std::mutex> lock(end->mutex);
    end->done = 1;
    end->passed.notify_all();
  });
  end->Wait(1);
  return Enter("synchronize_stream");
}

int SynchronizeEvent(void* event) {
  const EventRef e = EventAt(event);
  uint64_t ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(e->mutex);
    ticket = e->recorded;
  }
  e->Wait(ticket);
  return Enter("synchronize_event");
}

int ElapsedMs(float* ms, void* start, void* end) {
  if (const int error = Enter("elapsed_ms"); error != error::kSuccess) return error;
  const auto time_of = [](void* event) {
    const EventRef e = EventAt(event);
    const std::lock_guard<std::mutex> lock(e->mutex);
    return e->time;
  };
  *ms = std::chrono::duration<float, std::milli>(time_of(end) - time_of(start)).count();
  return error::kSuccess;
}

// Whether [data, data + bytes) is device memory; the mutex is held.
bool OnDevice(World& w, const void* data, int64_t bytes) {
  for (const auto* allocations : {&w.memory, &w.of_others}) {
    auto next = allocations->upper_bound(const_cast<void*>(data));
    if (next == allocations->begin()) continue;
    const auto& [start, memory] = *std::prev(next);
    if (static_cast<const char*>(data) + bytes <=
        static_cast<const char*>(start) + memory->bytes()) {
      return true;
    }
  }
  return false;
}

// What a handle of shared memory says: which file of which process.
struct FileOfProcess {
  pid_t process;
  int file;
  int64_t bytes;
};

int Uuid(DeviceUuid* uuid, int index) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  *uuid = {'e', 'm', 'u', static_cast<uint8_t>(w.uuid), static_cast<uint8_t>(index)};
  return error::kSuccess;
}

int ExportMemory(IpcHandle* handle, void* segment) {
  if (const int error = Enter("export_memory"); error != error::kSuccess) return error;
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  const auto file = w.files.find(segment);
  if (file == w.files.end()) return error::kInvalidValue;
  const FileOfProcess facts{getpid(), file->second, w.memory.at(segment)->bytes()};
  handle->fill(0);
  std::memcpy(handle->data(), &facts, sizeof facts);
  return error::kSuccess;
}

// As CUDA does, refuses what this very process exported.
int OpenMemory(void** segment, const IpcHandle& handle) {
  if (const int error = Enter("open_memory"); error != error::kSuccess) return error;
  FileOfProcess facts;
  std::memcpy(&facts, handle.data(), sizeof facts);
  if (facts.process == getpid()) return kInvalidContext;
  const std::string path =
      "/proc/" + std::to_string(facts.process) + "/fd/" + std::to_string(facts.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return kMapFailed;
  auto memory = std::make_unique<simt::GlobalMemory>(facts.bytes);
  const bool mapped = MapFile(*memory, file);
  close(file);
  if (!mapped) return kMapFailed;
  *segment = memory->data();
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.of_others[*segment] = std::move(memory);
  return error::kSuccess;
}

int CloseMemory(void* segment) {
  if (const int error = Enter("close_memory"); error != error::kSuccess) return error;
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.of_others.erase(segment) == 1 ? error::kSuccess : error::kInvalidValue;
}

int Copy(void* to, const void* from, int64_t bytes, CopyKind kind, void* stream) {
  if (const int error = Enter("copy"); error != error::kSuccess) return error;
  {
    World& w = TheWorld();
    const std::lock_guard<std::mutex> lock(w.mutex);
    if (OnDevice(w, to, bytes) != (kind != CopyKind::kDeviceToHost) ||
        OnDevice(w, from, bytes) != (kind != CopyKind::kHostToDevice)) {
      return error::kInvalidValue;
    }
  }
  At(stream).Push([=] {
    if (Alive()) std::memcpy(to, from, static_cast<size_t>(bytes));
  });
  return error::kSuccess;
}

int Fill(void* data, int byte, int64_t bytes, void* stream) {
  if (const int error = Enter("fill"); error != error::kSuccess) return error;
  At(stream).Push([=] {
    if (Alive()) std::memset(data, byte, static_cast<size_t>(bytes));
  });
  return error::kSuccess;
}

bool Has(const KernelImage& kernel) { return kernel.emulated != nullptr; }

int Encode(simt::TensorMap* map, const simt::TensorMapShape& shape) {
  if (const int error = Enter("encode"); error != error::kSuccess) return error;
  try {
    *map = simt::MakeTensorMap(shape);
  } catch (const simt::Fault&) {
    return error::kInvalidValue;
  }
  return error::kSuccess;
}

int Prepare(const KernelImage&, int* resident) {
  *resident = 1;
  return Enter("prepare");
}

// One launched kernel in the emulator; what goes wrong there ends the context, as on a GPU.
void Execute(const KernelImage& kernel, const LaunchShape& shape, const void* params) {
  if (!Alive()) return;
  int failed = Enter("kernel");
  if (failed != error::kSuccess) {
    World& w = TheWorld();
    const std::lock_guard<std::mutex> lock(w.mutex);
    w.sticky = failed;
    return;
  }
  World& w = TheWorld();
  uint64_t seed = 0;
  {
    const std::lock_guard<std::mutex> lock(w.mutex);
    seed = w.seed++;
  }
  const simt::LaunchResult result = simt::LaunchBody(
      shape.threads, shape.blocks, shape.shared_bytes,
      {.seed = seed, .resident_blocks = static_cast<int>(std::min<int64_t>(shape.blocks, 4))},
      kernel.emulated, params);
  if (result.ok()) return;
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.fault = result.message();
  const bool address = result.fault->kind == simt::FaultKind::kGlobalRange;
  w.sticky = address ? error::kIllegalAddress : error::kLaunchFailure;
}

int LaunchKernel(const KernelImage& kernel, const LaunchShape& shape, const void* params,
                 void* stream) {
  if (const int error = Enter("launch"); error != error::kSuccess) return error;
  if (kernel.emulated == nullptr) return error::kInvalidDeviceFunction;
  const auto* bytes = static_cast<const std::byte*>(params);
  // Parameters may hold tensor maps, which lie on 64 bytes.
  struct alignas(64) Chunk {
    std::byte bytes[64];
  };
  std::vector<Chunk> copy(static_cast<size_t>(kernel.params_bytes + 63) / 64);
  std::memcpy(copy.data(), bytes, static_cast<size_t>(kernel.params_bytes));
  At(stream).Push(
      [&kernel, shape, copy = std::move(copy)] { Execute(kernel, shape, copy.data()); });
  return error::kSuccess;
}

std::vector<std::string> CublasLtFiles() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.cublas_lt;
}

void Enqueue(void* stream, void (*work)(void*), void* argument) {
  At(stream).Push([=] { work(argument); });
}

}  // namespace

CudaRuntime Runtime() {
  CudaRuntime table;
  table.runtime_version = RuntimeVersion;
  table.driver_version = DriverVersion;
  table.device_count = DeviceCount;
  table.device = Device;
  table.kernel = KernelAttributes;
  table.error_name = ErrorName;
  table.set_device = SetDevice;
  table.memory_info = MemoryInfo;
  table.allocate = Allocate;
  table.release = Release;
  table.allocate_pinned = AllocatePinned;
  table.release_pinned = ReleasePinned;
  table.create_stream = CreateStream;
  table.destroy_stream = DestroyStream;
  table.create_event = CreateEvent;
  table.destroy_event = DestroyEvent;
  table.record_event = RecordEvent;
  table.wait_event = WaitEvent;
  table.synchronize_stream = SynchronizeStream;
  table.synchronize_event = SynchronizeEvent;
  table.elapsed_ms = ElapsedMs;
  table.copy = Copy;
  table.fill = Fill;
  table.has = Has;
  table.encode = Encode;
  table.prepare = Prepare;
  table.launch = LaunchKernel;
  table.cublas_lt = CublasLtFiles;
  return table;
}

CudaIpc Ipc() { return {Uuid, ExportMemory, OpenMemory, CloseMemory}; }

void Share() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.shares = true;
}

void Reset(const Machine& machine) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.machine = machine;
  w.script.clear();
  w.counts.clear();
  w.held = false;
  w.delay_ms = 0;
  w.sticky = error::kSuccess;
  w.fault.clear();
  w.changed.notify_all();
}

void FailNext(const std::string& call, int error, int after) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.script[call].push_back({error, after});
}

int64_t Count(const std::string& call) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.counts[call];
}

void Hold() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.held = true;
}

void Go() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.held = false;
  w.changed.notify_all();
}

void Delay(double ms) {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.delay_ms = ms;
}

int64_t AllocatedBytes() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.allocated;
}

int64_t PinnedBytes() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.pinned_bytes;
}

std::string LastFault() {
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  return w.fault;
}

void UseCublasLt(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    void* enqueue_by = dlsym(library, "fakeEnqueueBy");
    if (enqueue_by != nullptr) reinterpret_cast<void (*)(decltype(&Enqueue))>(enqueue_by)(Enqueue);
  }
  World& w = TheWorld();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.cublas_lt = files;
}

std::string Command(const std::string& text) {
  std::istringstream words(text);
  std::string verb;
  words >> verb;
  const auto set = [&](auto Machine::*field) -> std::string {
    World& w = TheWorld();
    const std::lock_guard<std::mutex> lock(w.mutex);
    return words >> w.machine.*field ? "" : "no number in: " + text;
  };
  if (verb == "hold") return Hold(), "";
  if (verb == "go") return Go(), "";
  if (verb == "reset") return Reset(), "";
  if (verb == "share") return Share(), "";
  if (verb == "fault") return LastFault();
  if (verb == "memory") return set(&Machine::memory_bytes);
  if (verb == "devices") return set(&Machine::devices);
  if (verb == "driver") return set(&Machine::driver_version);
  if (verb == "major") return set(&Machine::compute_major);
  if (verb == "uuid") {
    World& w = TheWorld();
    const std::lock_guard<std::mutex> lock(w.mutex);
    return words >> w.uuid ? "" : "no number in: " + text;
  }
  double ms = 0;
  if (verb == "delay" && words >> ms) return Delay(ms), "";
  if (verb == "cublaslt") {
    return UseCublasLt({std::istream_iterator<std::string>(words), {}}), "";
  }
  std::string call;
  if (verb == "count" && words >> call) return std::to_string(Count(call));
  int error = 0, after = 0;
  if (verb == "fail" && words >> call >> error) {
    words >> after;
    return FailNext(call, error, after), "";
  }
  return "unknown command: " + text;
}

}  // namespace varlen::cuda::fake
