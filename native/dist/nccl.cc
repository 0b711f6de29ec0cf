#include "dist/nccl.h"

#include <dlfcn.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

namespace varlen::dist {
namespace {

constexpr int kOldestVersion = 21900;
// The abort that a destructor waits for.
constexpr std::chrono::seconds kAbortLimit(30);

// The beginning of ncclConfig_t, as of 2.14: the library fills in what a smaller one leaves out.
struct Config {
  size_t size = sizeof(Config);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21400;
  int blocking = 0;
};

// ncclDataType_t
int NumberOf(Element element) {
  switch (element) {
    case Element::kU8:
      return 1;
    case Element::kI32:
      return 2;
    case Element::kI64:
      return 4;
    case Element::kF32:
      return 7;
    case Element::kF64:
      return 8;
  }
  return -1;
}

// ncclRedOp_t
int NumberOf(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum:
      return 0;
    case Reduction::kMax:
      return 2;
    case Reduction::kMin:
      return 3;
    case Reduction::kAvg:
      return 4;
  }
  return -1;
}

}  // namespace

// Prototypes of the public API. A communicator and a stream are pointers, an enumeration is an int.
struct NcclFunctions {
  int (*get_version)(int* version);
  int (*get_unique_id)(NcclUniqueId* id);
  int (*comm_init_rank_config)(void** comm, int size, NcclUniqueId id, int rank, Config* config);
  int (*comm_get_async_error)(void* comm, int* result);
  int (*comm_abort)(void* comm);
  int (*comm_finalize)(void* comm);
  int (*comm_destroy)(void* comm);
  int (*all_reduce)(const void* send, void* receive, size_t count, int type, int op, void* comm,
                    void* stream);
  int (*all_gather)(const void* send, void* receive, size_t count, int type, void* comm,
                    void* stream);
  int (*reduce_scatter)(const void* send, void* receive, size_t count, int type, int op, void* comm,
                        void* stream);
  int (*broadcast)(const void* send, void* receive, size_t count, int type, int root, void* comm,
                   void* stream);
  int (*group_start)();
  int (*group_end)();
  const char* (*get_error_string)(int result);
  const char* (*get_last_error)(void* comm);

  // The name of a symbol that the library lacks; null when it has all of them.
  const char* Load(void* library) {
    const std::pair<const char*, void*> symbols[] = {
        {"ncclGetVersion", &get_version},
        {"ncclGetUniqueId", &get_unique_id},
        {"ncclCommInitRankConfig", &comm_init_rank_config},
        {"ncclCommGetAsyncError", &comm_get_async_error},
        {"ncclCommAbort", &comm_abort},
        {"ncclCommFinalize", &comm_finalize},
        {"ncclCommDestroy", &comm_destroy},
        {"ncclAllReduce", &all_reduce},
        {"ncclAllGather", &all_gather},
        {"ncclReduceScatter", &reduce_scatter},
        {"ncclBroadcast", &broadcast},
        {"ncclGroupStart", &group_start},
        {"ncclGroupEnd", &group_end},
        {"ncclGetErrorString", &get_error_string},
        {"ncclGetLastError", &get_last_error},
    };
    for (const auto& [name, slot] : symbols) {
      void* symbol = dlsym(library, name);
      if (symbol == nullptr) return name;
      *static_cast<void**>(slot) = symbol;  // POSIX: a function's address fits
    }
    return nullptr;
  }
};

std::shared_ptr<const NcclLibrary> NcclLibrary::Open(const std::string& path, std::string* reason) {
  const char* asked = std::getenv("VARLEN_NCCL_PATH");
  const std::string name = !path.empty()                          ? path
                           : asked != nullptr && asked[0] != '\0' ? std::string(asked)
                                                                  : "libnccl.so.2";
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    *reason = dlerror();
    return nullptr;
  }
  auto functions = std::make_unique<NcclFunctions>();
  if (const char* missing = functions->Load(handle)) {
    *reason = name + " has no " + missing;
    dlclose(handle);
    return nullptr;
  }
  int version = 0;
  const int result = functions->get_version(&version);
  if (result != 0 || version < kOldestVersion) {
    *reason = name + " is version " + std::to_string(version) + "; expected " +
              std::to_string(kOldestVersion) + " or newer";
    dlclose(handle);
    return nullptr;
  }
  return std::make_shared<const NcclLibrary>(std::move(functions), version, name);
}

NcclLibrary::NcclLibrary(std::unique_ptr<const NcclFunctions> functions, int version,
                         std::string path)
    : functions_(std::move(functions)), version_(version), path_(std::move(path)) {}

NcclLibrary::~NcclLibrary() = default;

NcclStatus NcclLibrary::MakeUniqueId(NcclUniqueId* id) const {
  const int result = functions_->get_unique_id(id);
  if (result == 0) return {};
  return {static_cast<NcclResult>(result),
          std::string("ncclGetUniqueId: ") + functions_->get_error_string(result)};
}

NcclCommunicator::NcclCommunicator(std::shared_ptr<const NcclLibrary> library, void* handle)
    : library_(std::move(library)), handle_(handle) {}

NcclStatus NcclCommunicator::Begin(std::shared_ptr<const NcclLibrary> library,
                                   const NcclUniqueId& id, int rank, int size,
                                   std::unique_ptr<NcclCommunicator>* communicator) {
  const NcclFunctions& nccl = library->functions();
  Config config;
  void* handle = nullptr;
  const int result = nccl.comm_init_rank_config(&handle, size, id, rank, &config);
  communicator->reset(new NcclCommunicator(std::move(library), handle));
  const NcclStatus status = (*communicator)->Checked(result, "ncclCommInitRankConfig");
  if (!status.ok()) communicator->reset();
  return status;
}

NcclCommunicator::~NcclCommunicator() { Abort(kAbortLimit); }

// A call that goes on in the background has not failed; Poll() tells how it ends.
NcclStatus NcclCommunicator::Checked(int result, const char* call) {
  const auto kind = static_cast<NcclResult>(result);
  if (kind == NcclResult::kSuccess || kind == NcclResult::kInProgress) return {};
  const NcclFunctions& nccl = library_->functions();
  std::string message = std::string(call) + ": " + nccl.get_error_string(result);
  const char* last = nccl.get_last_error(handle_);
  if (last != nullptr && last[0] != '\0') message += std::string(" (") + last + ")";
  return {kind, std::move(message)};
}

NcclStatus NcclCommunicator::AllReduce(const void* send, void* receive, size_t count,
                                       Element element, Reduction reduction, void* stream) {
  return Checked(library_->functions().all_reduce(send, receive, count, NumberOf(element),
                                                  NumberOf(reduction), handle_, stream),
                 "ncclAllReduce");
}

NcclStatus NcclCommunicator::AllGather(const void* send, void* receive, size_t count,
                                       Element element, void* stream) {
  return Checked(
      library_->functions().all_gather(send, receive, count, NumberOf(element), handle_, stream),
      "ncclAllGather");
}

NcclStatus NcclCommunicator::ReduceScatter(const void* send, void* receive, size_t count,
                                           Element element, Reduction reduction, void* stream) {
  return Checked(library_->functions().reduce_scatter(send, receive, count, NumberOf(element),
                                                      NumberOf(reduction), handle_, stream),
                 "ncclReduceScatter");
}

NcclStatus NcclCommunicator::Broadcast(const void* send, void* receive, size_t count,
                                       Element element, int root, void* stream) {
  return Checked(library_->functions().broadcast(send, receive, count, NumberOf(element), root,
                                                 handle_, stream),
                 "ncclBroadcast");
}

NcclStatus NcclCommunicator::GroupStart() {
  return Checked(library_->functions().group_start(), "ncclGroupStart");
}

NcclStatus NcclCommunicator::GroupEnd() {
  return Checked(library_->functions().group_end(), "ncclGroupEnd");
}

NcclStatus NcclCommunicator::Poll() {
  int state = 0;
  const int result = library_->functions().comm_get_async_error(handle_, &state);
  const NcclStatus asked = Checked(result, "ncclCommGetAsyncError");
  if (!asked.ok()) return asked;
  if (static_cast<NcclResult>(state) == NcclResult::kInProgress) {
    return {NcclResult::kInProgress, "in progress"};
  }
  return Checked(state, "NCCL");
}

bool NcclCommunicator::Abort(std::chrono::milliseconds limit) {
  if (handle_ == nullptr) return true;
  struct Call {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  // The library may wait for a kernel that waits for a peer: a thread of its own waits with it.
  const auto call = std::make_shared<Call>();
  std::thread([call, library = library_, handle = std::exchange(handle_, nullptr)] {
    library->functions().comm_abort(handle);
    std::lock_guard<std::mutex> lock(call->mutex);
    call->done = true;
    call->changed.notify_all();
  }).detach();
  std::unique_lock<std::mutex> lock(call->mutex);
  return call->changed.wait_for(lock, limit, [&] { return call->done; });
}

NcclStatus NcclCommunicator::Close() {
  if (handle_ == nullptr) return {};
  const NcclFunctions& nccl = library_->functions();
  NcclStatus status = Checked(nccl.comm_finalize(handle_), "ncclCommFinalize");
  const auto end = std::chrono::steady_clock::now() + kAbortLimit;
  while (status.ok()) {
    const NcclStatus flushed = Poll();
    if (flushed.result != NcclResult::kInProgress) {
      status = flushed;
      break;
    }
    if (std::chrono::steady_clock::now() >= end) {
      status = {NcclResult::kTimeout, "ncclCommFinalize: still in progress"};
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!status.ok()) return status;
  return Checked(nccl.comm_destroy(std::exchange(handle_, nullptr)), "ncclCommDestroy");
}

}  // namespace varlen::dist
