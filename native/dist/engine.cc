#include "dist/engine.h"

#include <gloo/allgather.h>
#include <gloo/allgatherv.h>
#include <gloo/allreduce.h>
#include <gloo/broadcast.h>
#include <gloo/common/error.h>
#include <gloo/context.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dist/sockets.h"

namespace varlen::dist {
namespace {

std::chrono::milliseconds Left(Clock::time_point deadline) {
  using std::chrono::milliseconds;
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
  return std::max(left, milliseconds(1));  // 0 means for ever to Gloo
}

uint64_t LengthOf(const Bytes& frames, int rank) {
  uint64_t length = 0;
  std::memcpy(&length, frames.data() + static_cast<size_t>(rank) * kFrameBytes, sizeof length);
  return length;
}

// True when every rank describes the same call.
bool Agree(const Bytes& frames, int size) {
  const uint8_t* first = frames.data() + sizeof(uint64_t);
  for (int rank = 1; rank < size; ++rank) {
    const uint8_t* other = first + static_cast<size_t>(rank) * kFrameBytes;
    if (std::memcmp(first, other, kSignatureBytes) != 0) return false;
  }
  return true;
}

// An address of Gloo's begins with the socket's.
template <class Byte>
sockaddr_storage SocketAddress(const Byte* address, size_t bytes) {
  sockaddr_storage result{};
  std::memcpy(&result, address, std::min(sizeof result, bytes));
  return result;
}

}  // namespace

// Gloo's context in two steps, with the exchange of addresses left to the caller.
class Engine::Mesh : public gloo::Context {
 public:
  using gloo::Context::Context;

  Bytes Listen(const std::string& host, std::chrono::milliseconds timeout) {
    gloo::transport::tcp::attr attr;
    attr.hostname = host;
    device_ = gloo::transport::tcp::CreateDevice(attr);
    setTimeout(timeout);
    transportContext_ = device_->createContext(rank, size);
    transportContext_->setTimeout(timeout);
    Bytes addresses;
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const std::vector<char> bytes = transportContext_->createPair(peer)->address().bytes();
      addresses.insert(addresses.end(), bytes.begin(), bytes.end());
      ends_.push_back(SocketAddress(bytes.data(), bytes.size()));
    }
    return addresses;
  }

  void Connect(const std::vector<Bytes>& addresses, std::chrono::milliseconds timeout) {
    setTimeout(timeout);
    transportContext_->setTimeout(timeout);
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto [at, bytes] = AddressFrom(addresses, peer);
      const std::vector<char> address(at, at + bytes);
      transportContext_->getPair(peer)->connect(address);
    }
  }

  // The other end of each connection, in rank order. Who connected did so from a port of its own;
  // who was connected to is where its address says.
  Bytes PeerEnds() const {
    const size_t pairs = static_cast<size_t>(size - 1);
    const std::vector<sockaddr_storage> accepted =
        PeersOf({ends_.begin(), ends_.begin() + static_cast<std::ptrdiff_t>(pairs)});
    Bytes result(static_cast<size_t>(size) * sizeof(sockaddr_storage));
    for (size_t i = 0; i < pairs; ++i) {
      const size_t peer = i < static_cast<size_t>(rank) ? i : i + 1;
      const sockaddr_storage& end =
          accepted[i].ss_family == AF_UNSPEC ? ends_[pairs + i] : accepted[i];
      std::memcpy(result.data() + peer * sizeof end, &end, sizeof end);
    }
    return result;
  }

  // Addresses of the pairs: this rank's, and from Connect() on those of its peers. A connection
  // has one of them at one end at least: the side that connects does so from a port of its own.
  const std::vector<sockaddr_storage>& ends() const { return ends_; }
  void AddEnds(const std::vector<Bytes>& addresses) {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto [at, bytes] = AddressFrom(addresses, peer);
      ends_.push_back(SocketAddress(at, bytes));
    }
  }

 private:
  // Where a peer waits for this rank. A rank lists one address for each of its peers, itself left
  // out.
  std::pair<const uint8_t*, size_t> AddressFrom(const std::vector<Bytes>& addresses,
                                                int peer) const {
    const Bytes& all = addresses[static_cast<size_t>(peer)];
    const size_t bytes = all.size() / static_cast<size_t>(size - 1);
    return {all.data() + bytes * static_cast<size_t>(rank < peer ? rank : rank - 1), bytes};
  }

  std::vector<sockaddr_storage> ends_;
};

Engine::Engine(int rank, int size, std::string host)
    : rank_(rank), size_(size), host_(std::move(host)) {}

Engine::~Engine() = default;

Bytes Engine::Listen(Clock::time_point deadline) {
  auto mesh = std::make_shared<Mesh>(rank_, size_);
  Bytes addresses = mesh->Listen(host_, Left(deadline));
  std::lock_guard<std::mutex> lock(mutex_);
  if (aborted_) throw gloo::IoException("aborted");
  mesh_ = std::move(mesh);
  return addresses;
}

Bytes Engine::Connect(const std::vector<Bytes>& addresses, Clock::time_point deadline) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    mesh_->AddEnds(addresses);
  }
  mesh_->Connect(addresses, Left(deadline));
  return mesh_->PeerEnds();
}

Bytes Engine::GatherFrames(std::span<const uint8_t> message, Clock::time_point deadline) {
  Bytes frame(kFrameBytes, 0);
  const uint64_t length = message.size();
  std::memcpy(frame.data(), &length, sizeof length);
  std::memcpy(frame.data() + sizeof length, message.data(), std::min(message.size(), kInlineBytes));
  if (size_ == 1) return frame;
  Bytes frames(static_cast<size_t>(size_) * kFrameBytes);
  gloo::AllgatherOptions options(mesh_);
  options.setInput(frame.data(), frame.size());
  options.setOutput(frames.data(), frames.size());
  options.setTag(tag_++);
  options.setTimeout(Left(deadline));
  gloo::allgather(options);
  return frames;
}

Gathered Engine::Exchange(std::span<const uint8_t> message, size_t max_bytes,
                          Clock::time_point deadline) {
  Gathered gathered{GatherFrames(message, deadline), {}};
  std::vector<size_t> lengths;
  size_t total = 0, longest = 0;
  for (int rank = 0; rank < size_; ++rank) {
    lengths.push_back(LengthOf(gathered.frames, rank));
    longest = std::max(longest, lengths.back());
    if (longest > max_bytes) return gathered;  // before the sum could wrap
    total += lengths.back();
  }
  if (longest <= kInlineBytes || !Agree(gathered.frames, size_)) return gathered;
  gathered.whole.resize(total);
  if (size_ == 1) {
    std::memcpy(gathered.whole.data(), message.data(), message.size());
    return gathered;
  }
  gloo::AllgathervOptions options(mesh_);
  options.setInput(const_cast<uint8_t*>(message.data()), message.size());
  options.setOutput(gathered.whole.data(), std::move(lengths));
  options.setTag(tag_++);
  options.setTimeout(Left(deadline));
  gloo::allgatherv(options);
  return gathered;
}

Gathered Engine::Collective(std::span<const uint8_t> signature, const Arrays& arrays,
                            Clock::time_point deadline) {
  Gathered gathered{GatherFrames(signature, deadline), {}};
  if (arrays.count == 0 || !Agree(gathered.frames, size_)) return gathered;
  const size_t bytes = arrays.count * SizeOf(arrays.element);
  switch (arrays.operation) {
    case Operation::kAllReduce:
      AllReduce(arrays, deadline);
      break;
    case Operation::kBroadcast:
      if (size_ > 1) {
        gloo::BroadcastOptions options(mesh_);
        options.setOutput(arrays.output, bytes);
        options.setRoot(arrays.root);
        options.setTag(tag_++);
        options.setTimeout(Left(deadline));
        gloo::broadcast(options);
      }
      break;
    case Operation::kAllGather:
      if (size_ == 1) {
        std::memcpy(arrays.output, arrays.input, bytes);
      } else {
        gloo::AllgatherOptions options(mesh_);
        options.setInput(const_cast<uint8_t*>(arrays.input), bytes);
        options.setOutput(arrays.output, bytes * static_cast<size_t>(size_));
        options.setTag(tag_++);
        options.setTimeout(Left(deadline));
        gloo::allgather(options);
      }
      break;
  }
  return gathered;
}

void Engine::AllReduce(const Arrays& arrays, Clock::time_point deadline) {
  const Plan plan = PlanOf(arrays.element, arrays.reduction);
  Bytes wide;
  uint8_t* travels = arrays.output;
  if (plan.widen != nullptr) {
    wide.resize(arrays.count * plan.bytes);
    travels = wide.data();
    plan.widen(arrays.output, travels, arrays.count);
  }
  if (size_ > 1) {
    // Gloo knows an element by its size alone.
    struct Sixteen {
      uint64_t words[2];
    };
    gloo::AllreduceOptions options(mesh_);
    switch (plan.bytes) {
      case 1:
        options.setOutput(travels, arrays.count);
        break;
      case 4:
        options.setOutput(reinterpret_cast<uint32_t*>(travels), arrays.count);
        break;
      case 8:
        options.setOutput(reinterpret_cast<uint64_t*>(travels), arrays.count);
        break;
      default:
        options.setOutput(reinterpret_cast<Sixteen*>(travels), arrays.count);
        break;
    }
    // The ring adds in an order that depends on the number of ranks alone: equal runs, equal bits.
    options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
    options.setReduceFunction(plan.reduce);
    options.setTag(tag_++);
    options.setTimeout(Left(deadline));
    gloo::allreduce(options);
  }
  if (plan.finish != nullptr) plan.finish(travels, arrays.output, arrays.count, size_);
}

void Engine::Disconnect() {
  std::shared_ptr<Mesh> mesh;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    mesh = std::move(mesh_);
  }
}

int Engine::Abort() {
  // Held during the scan of the sockets, so that none is closed and its number reused meanwhile.
  std::lock_guard<std::mutex> lock(mutex_);
  aborted_ = true;
  return mesh_ == nullptr ? 0 : ShutdownSockets(mesh_->ends());
}

}  // namespace varlen::dist
