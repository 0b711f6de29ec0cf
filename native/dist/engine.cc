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

#include "dist/interruptible.h"
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
    auto sockets = device_->createContext(rank, size);
    // A pair waits five times this long for its peer.
    sockets->setTimeout(std::max(timeout / 5, std::chrono::milliseconds(1)));
    transportContext_ = MakeInterruptible(std::move(sockets), interrupt_);
    Bytes addresses;
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const std::vector<char> bytes = transportContext_->createPair(peer)->address().bytes();
      addresses.insert(addresses.end(), bytes.begin(), bytes.end());
      own_.push_back(SocketAddress(bytes.data(), bytes.size()));
    }
    return addresses;
  }

  void Connect(const std::vector<Bytes>& addresses) {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto [at, bytes] = AddressFrom(addresses, peer);
      const std::vector<char> address(at, at + bytes);
      transportContext_->getPair(peer)->connect(address);
    }
  }

  // The connections, in rank order, this rank left out.
  void Find() { links_ = FindLinks(own_, theirs_); }

  std::vector<int> Lost() const {
    std::vector<int> ranks;
    for (size_t i = 0; i < links_.size(); ++i) {
      const int peer = static_cast<int>(i) < rank ? static_cast<int>(i) : static_cast<int>(i) + 1;
      if (HasEnded(links_[i])) ranks.push_back(peer);
    }
    return ranks;
  }

  // Wakes whoever waits for a message or for a connection, here and at the peers.
  void Shutdown() {
    interrupt_->Raise();
    for (const Link& link : links_) dist::Shutdown(link);
    if (links_.empty()) ShutdownAll(own_, theirs_);  // still connecting
  }

  void AddPeers(const std::vector<Bytes>& addresses) {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto [at, bytes] = AddressFrom(addresses, peer);
      theirs_.push_back(SocketAddress(at, bytes));
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

  const std::shared_ptr<Interrupt> interrupt_ = std::make_shared<Interrupt>();
  // Where this rank waits for each peer and where each peer waits for it. A connection has one of
  // the two addresses at one of its ends.
  std::vector<sockaddr_storage> own_;
  std::vector<sockaddr_storage> theirs_;
  std::vector<Link> links_;
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

void Engine::Connect(const std::vector<Bytes>& addresses) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (aborted_) throw gloo::IoException("aborted");
    mesh_->AddPeers(addresses);
  }
  mesh_->Connect(addresses);
  std::lock_guard<std::mutex> lock(mutex_);
  mesh_->Find();
}

std::vector<int> Engine::Lost() {
  std::lock_guard<std::mutex> lock(mutex_);
  return mesh_ == nullptr ? std::vector<int>() : mesh_->Lost();
}

Bytes Engine::GatherFrames(std::span<const uint8_t> message) {
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
  gloo::allgather(options);
  return frames;
}

Gathered Engine::Exchange(std::span<const uint8_t> message, size_t max_bytes) {
  Gathered gathered{GatherFrames(message), {}};
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
  gloo::allgatherv(options);
  return gathered;
}

Gathered Engine::Collective(std::span<const uint8_t> signature, const Arrays& arrays) {
  Gathered gathered{GatherFrames(signature), {}};
  if (arrays.count == 0 || !Agree(gathered.frames, size_)) return gathered;
  const size_t bytes = arrays.count * SizeOf(arrays.element);
  switch (arrays.operation) {
    case Operation::kAllReduce:
      AllReduce(arrays);
      break;
    case Operation::kBroadcast:
      if (size_ > 1) {
        gloo::BroadcastOptions options(mesh_);
        options.setOutput(arrays.output, bytes);
        options.setRoot(arrays.root);
        options.setTag(tag_++);
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
        gloo::allgather(options);
      }
      break;
  }
  return gathered;
}

void Engine::AllReduce(const Arrays& arrays) {
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

void Engine::Abort() {
  std::lock_guard<std::mutex> lock(mutex_);
  aborted_ = true;
  if (mesh_ != nullptr) mesh_->Shutdown();
}

}  // namespace varlen::dist
