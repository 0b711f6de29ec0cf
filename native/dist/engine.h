#pragma once

#include <gloo/transport/context.h>
#include <gloo/transport/device.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "dist/reduce.h"

// One group of ranks over Gloo. Knows nothing of JavaScript nor of deadlines but that of
// connecting; every member is called on the group's communication thread unless it says otherwise.
//
// Gloo ends the process when ranks disagree about a collective (an exception on its I/O thread) and
// when it gathers nothing (a division by zero). So every operation begins with an all-gather of
// frames, whose size never differs; only ranks whose signatures are equal go on, and empty arrays
// never reach Gloo.
namespace varlen::dist {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<uint8_t>;

// A frame: u64 length of the message, then as much of it as fits. A message begins with the 32
// bytes of signature of src/dist/signature.ts. 1 KiB holds the headers of the alignment protocol.
inline constexpr size_t kFrameBytes = 1024;
inline constexpr size_t kInlineBytes = kFrameBytes - sizeof(uint64_t);
inline constexpr size_t kSignatureBytes = 32;

enum class Operation : uint8_t { kAllReduce, kBroadcast, kAllGather };

// What every rank sent.
struct Gathered {
  Bytes frames;  // [size, kFrameBytes]
  Bytes whole;   // the messages one after another; empty when each fits into its frame
};

// The arrays of a collective, in memory that the caller keeps and nobody else touches.
struct Arrays {
  Operation operation;
  Element element;
  Reduction reduction;
  int root;
  const uint8_t* input;  // of an all-gather only
  uint8_t* output;
  size_t count;  // elements of this rank
};

class Engine {
 public:
  // `host`: the local address that peers connect to.
  Engine(int rank, int size, std::string host);
  ~Engine();

  // Opens a listening socket for each peer; returns their addresses, which the peers need.
  Bytes Listen(Clock::time_point deadline);
  // Connects to all peers. `addresses`: what Listen() returned on every rank, in rank order.
  void Connect(const std::vector<Bytes>& addresses);

  // Brings one message of every rank to every rank. The messages that are too long for a frame
  // follow only if the signatures agree and none is longer than `max_bytes`.
  Gathered Exchange(std::span<const uint8_t> message, size_t max_bytes);
  // Runs a collective on memory if the signatures agree; returns the frames either way.
  Gathered Collective(std::span<const uint8_t> signature, const Arrays& arrays);

  // Closes all connections.
  void Disconnect();

  // From any thread: the peers that have closed their connection.
  std::vector<int> Lost();
  // From any thread: ends what is in progress, and the connections for the peers as well.
  void Abort();

 private:
  class Mesh;

  Bytes GatherFrames(std::span<const uint8_t> message);
  void AllReduce(const Arrays& arrays);

  const int rank_;
  const int size_;
  const std::string host_;
  std::mutex mutex_;  // guards `mesh_`, what it knows of its sockets, and `aborted_`
  std::shared_ptr<Mesh> mesh_;
  bool aborted_ = false;
  uint32_t tag_ = 0;
};

}  // namespace varlen::dist
