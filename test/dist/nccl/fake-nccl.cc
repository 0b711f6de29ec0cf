// A library with NCCL's names, for host memory: the ranks are communicators of one process. A
// collective runs when its last rank has called it.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Id {
  char bytes[128];
};

struct Config {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int blocking;
};

struct Call {
  std::string name;
  const float* send;
  float* receive;
  size_t count;
  int type, op, root;
};

struct Comm;

struct World {
  int size = 0;
  std::vector<Comm*> ranks;
  bool Complete() const;
};

struct Comm {
  World* world;
  int rank;
  std::vector<Call> calls;  // not run yet
  int error = 0;
  bool finalized = false;
};

std::mutex mutex;
std::map<std::string, World> worlds;
int alive = 0, open_groups = 0, next_id = 0, version = 23007;
bool abort_hangs = false;
std::string last_error;

bool World::Complete() const {
  for (const Comm* comm : ranks) {
    if (comm == nullptr) return false;
  }
  return true;
}

void Run(World& world) {
  std::vector<Call> calls;
  for (const Comm* comm : world.ranks) {
    if (comm == nullptr || comm->calls.empty()) return;
  }
  for (Comm* comm : world.ranks) {
    calls.push_back(comm->calls.front());
    comm->calls.erase(comm->calls.begin());
  }
  const size_t size = calls.size(), count = calls[0].count;
  const std::string name = calls[0].name;
  const size_t whole = name == "reduce-scatter" ? count * size : count;
  std::vector<float> sum(whole, 0.0F);
  for (const Call& call : calls) {
    if (name == "all-gather" || name == "broadcast") break;
    for (size_t i = 0; i < whole; ++i) sum[i] += call.send[i];
  }
  if (calls[0].op == 4) {
    for (float& x : sum) x /= static_cast<float>(size);
  }
  std::vector<float> gathered;
  for (const Call& call : calls) gathered.insert(gathered.end(), call.send, call.send + count);
  for (size_t rank = 0; rank < size; ++rank) {
    float* to = calls[rank].receive;
    if (name == "all-reduce") std::memcpy(to, sum.data(), count * sizeof(float));
    if (name == "reduce-scatter") {
      std::memcpy(to, sum.data() + rank * count, count * sizeof(float));
    }
    if (name == "all-gather") std::memcpy(to, gathered.data(), gathered.size() * sizeof(float));
    if (name == "broadcast") {
      const size_t root = static_cast<size_t>(calls[0].root) * count;
      std::memcpy(to, gathered.data() + root, count * sizeof(float));
    }
  }
}

int Enqueue(void* handle, const void* stream, Call call) {
  std::lock_guard<std::mutex> lock(mutex);
  Comm* comm = static_cast<Comm*>(handle);
  if (comm->error != 0) return comm->error;
  if (call.type != 7 || stream == nullptr) {
    last_error = "the fake knows float32 on a stream alone";
    return 4;
  }
  comm->calls.push_back(std::move(call));
  Run(*comm->world);
  return 0;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* result) {
  *result = version;
  return 0;
}

int ncclGetUniqueId(Id* id) {
  std::lock_guard<std::mutex> lock(mutex);
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->bytes, &++next_id, sizeof next_id);
  return 0;
}

int ncclCommInitRankConfig(void** handle, int size, Id id, int rank, const Config* config) {
  std::lock_guard<std::mutex> lock(mutex);
  if (config->magic != 0xcafebeef || config->blocking != 0 || config->size < sizeof(Config)) {
    return 4;
  }
  World& world = worlds[std::string(id.bytes, sizeof id.bytes)];
  if (world.size == 0) world = {size, std::vector<Comm*>(static_cast<size_t>(size), nullptr)};
  if (world.size != size || rank < 0 || rank >= size) {
    last_error = "the ranks do not fit together";
    return 5;
  }
  Comm* comm = new Comm{&world, rank, {}, 0, false};
  world.ranks[static_cast<size_t>(rank)] = comm;
  ++alive;
  *handle = comm;
  return 7;
}

int ncclCommGetAsyncError(void* handle, int* result) {
  std::lock_guard<std::mutex> lock(mutex);
  const Comm* comm = static_cast<Comm*>(handle);
  *result = comm->error != 0 ? comm->error : comm->world->Complete() ? 0 : 7;
  return 0;
}

int ncclCommAbort(void* handle) {
  while (abort_hangs) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::lock_guard<std::mutex> lock(mutex);
  Comm* comm = static_cast<Comm*>(handle);
  for (Comm* peer : comm->world->ranks) {
    if (peer != nullptr && peer != comm && !peer->finalized) peer->error = 6;
  }
  comm->world->ranks[static_cast<size_t>(comm->rank)] = nullptr;
  delete comm;
  --alive;
  return 0;
}

int ncclCommFinalize(void* handle) {
  std::lock_guard<std::mutex> lock(mutex);
  static_cast<Comm*>(handle)->finalized = true;
  return 7;
}

int ncclCommDestroy(void* handle) {
  std::lock_guard<std::mutex> lock(mutex);
  Comm* comm = static_cast<Comm*>(handle);
  if (!comm->finalized) return 5;
  // The others may still close: the place stays taken.
  --alive;
  return 0;
}

int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, void* comm,
                  void* stream) {
  return Enqueue(comm, stream,
                 {"all-reduce", static_cast<const float*>(send), static_cast<float*>(receive),
                  count, type, op, 0});
}

int ncclAllGather(const void* send, void* receive, size_t count, int type, void* comm,
                  void* stream) {
  return Enqueue(comm, stream,
                 {"all-gather", static_cast<const float*>(send), static_cast<float*>(receive),
                  count, type, 0, 0});
}

int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int op, void* comm,
                      void* stream) {
  return Enqueue(comm, stream,
                 {"reduce-scatter", static_cast<const float*>(send), static_cast<float*>(receive),
                  count, type, op, 0});
}

int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* comm,
                  void* stream) {
  return Enqueue(comm, stream,
                 {"broadcast", static_cast<const float*>(send), static_cast<float*>(receive), count,
                  type, 0, root});
}

int ncclGroupStart() {
  ++open_groups;
  return 0;
}

int ncclGroupEnd() { return --open_groups < 0 ? 5 : 0; }

const char* ncclGetErrorString(int result) {
  return result == 6 ? "remote process exited or there was a network error" : "invalid usage";
}

const char* ncclGetLastError(void*) { return last_error.c_str(); }

// What the tests turn.
void fakeNcclVersion(int next) { version = next; }
void fakeNcclAbortHangs(bool hangs) { abort_hangs = hangs; }
void fakeNcclFail(int result) {
  std::lock_guard<std::mutex> lock(mutex);
  for (auto& [id, world] : worlds) {
    for (Comm* comm : world.ranks) {
      if (comm != nullptr) comm->error = result;
    }
  }
}
int fakeNcclAlive() {
  std::lock_guard<std::mutex> lock(mutex);
  return alive;
}

}  // extern "C"
