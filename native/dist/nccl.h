#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "dist/reduce.h"

// NCCL, opened when it is first asked for: the package neither ships nor links it. Knows nothing of
// JavaScript and nothing of CUDA but two addresses: memory of a device, and a stream.
//
// A communicator is used by one thread at a time, but for Abort().
namespace varlen::dist {

// Numbers of NCCL's results; the API is stable since 2.0.
enum class NcclResult : int {
  kSuccess = 0,
  kCuda = 1,
  kSystem = 2,
  kInternal = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemote = 6,
  kInProgress = 7,
  kTimeout = 8,
};

// How a call went; a message for everything but success.
struct NcclStatus {
  NcclResult result = NcclResult::kSuccess;
  std::string message;

  bool ok() const { return result == NcclResult::kSuccess; }
};

// Passed by value, as the library takes it.
struct NcclUniqueId {
  std::array<char, 128> bytes;
};

struct NcclFunctions;

// The library. Never closed: its threads outlive their communicators.
class NcclLibrary {
 public:
  // Opens `path`, or what VARLEN_NCCL_PATH names, or libnccl.so.2; 2.19 at least. Null, and why in
  // `reason`, when there is none.
  static std::shared_ptr<const NcclLibrary> Open(const std::string& path, std::string* reason);

  explicit NcclLibrary(std::unique_ptr<const NcclFunctions> functions, int version,
                       std::string path);
  ~NcclLibrary();

  const NcclFunctions& functions() const { return *functions_; }
  int version() const { return version_; }  // 10000 * major + 100 * minor + patch
  const std::string& path() const { return path_; }

  NcclStatus MakeUniqueId(NcclUniqueId* id) const;

 private:
  const std::unique_ptr<const NcclFunctions> functions_;
  const int version_;
  const std::string path_;
};

// One rank of a communicator. Nothing waits but Abort(): Poll() tells when what was begun is done.
class NcclCommunicator {
 public:
  // Begins to join the ranks that have the same id; Poll() is kInProgress until all have come.
  static NcclStatus Begin(std::shared_ptr<const NcclLibrary> library, const NcclUniqueId& id,
                          int rank, int size, std::unique_ptr<NcclCommunicator>* communicator);
  // Aborts what is not closed.
  ~NcclCommunicator();

  // Collectives on `stream`, of `count` elements per rank (ReduceScatter: that each rank gets).
  // `send` may be `receive`. They return when the work is enqueued.
  NcclStatus AllReduce(const void* send, void* receive, size_t count, Element element,
                       Reduction reduction, void* stream);
  NcclStatus AllGather(const void* send, void* receive, size_t count, Element element,
                       void* stream);
  NcclStatus ReduceScatter(const void* send, void* receive, size_t count, Element element,
                           Reduction reduction, void* stream);
  NcclStatus Broadcast(const void* send, void* receive, size_t count, Element element, int root,
                       void* stream);
  // The calls between the two are one launch.
  NcclStatus GroupStart();
  NcclStatus GroupEnd();

  // What has happened since: success, kInProgress, or the first error, also one of a peer.
  NcclStatus Poll();

  // Ends what is in progress on all ranks that can hear of it and gives everything back. False when
  // the library has not returned within `limit`: the process should end then.
  bool Abort(std::chrono::milliseconds limit);
  // Flushes and gives everything back; the work must be done.
  NcclStatus Close();

 private:
  NcclCommunicator(std::shared_ptr<const NcclLibrary> library, void* handle);

  NcclStatus Checked(int result, const char* call);

  const std::shared_ptr<const NcclLibrary> library_;
  void* handle_;
};

}  // namespace varlen::dist
