#include "dist/frames.h"

#include <gloo/transport/pair.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dist/helpers.h"
#include "dist/spin.h"

namespace varlen::dist {
namespace {

bool IsReadable(int socket) {
  pollfd state{socket, POLLIN, 0};
  return poll(&state, 1, 0) != 0;
}

}  // namespace

FrameLinks::FrameLinks(std::shared_ptr<gloo::transport::Context> context,
                       const std::vector<int>& sockets)
    : context_(std::move(context)) {
  for (Bytes& frame : own_) frame.resize(kFrameBytes);
  std::vector<gloo::transport::Pair*> pairs;
  for (int rank = 0; rank < context_->size; ++rank) {
    if (rank == context_->rank) continue;
    gloo::transport::Pair& pair = *context_->getPair(rank);
    Peer peer{rank, sockets[peers_.size()], {}, {}, {}};
    for (size_t turn = 0; turn < 2; ++turn) {
      const int slot = static_cast<int>(turn);
      peer.arrived[turn].resize(kFrameBytes);
      peer.send[turn] = pair.createSendBuffer(slot, own_[turn].data(), kFrameBytes);
      peer.receive[turn] = pair.createRecvBuffer(slot, peer.arrived[turn].data(), kFrameBytes);
    }
    peers_.push_back(std::move(peer));
    pairs.push_back(&pair);
  }
  // From now on who waits for a message reads it.
  WithHelpers(
      static_cast<int>(pairs.size()),
      [&pairs](int i) { pairs[static_cast<size_t>(i)]->setSync(true, false); }, [] {});
}

Bytes FrameLinks::Gather(std::span<const uint8_t> message) {
  const size_t turn = turn_++ % 2;
  const uint64_t length = message.size();
  const size_t begins = std::min(message.size(), kInlineBytes);
  Bytes& own = own_[turn];
  std::memcpy(own.data(), &length, sizeof length);
  std::memcpy(own.data() + sizeof length, message.data(), begins);
  for (Peer& peer : peers_) {
    peer.send[turn]->send(0, sizeof length + begins);
    peer.send[turn]->waitSend();
  }
  Bytes frames(static_cast<size_t>(context_->size) * kFrameBytes);
  const auto put = [&frames](int rank, const Bytes& frame) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, frame.data(), sizeof bytes);
    const size_t used = sizeof bytes + static_cast<size_t>(std::min<uint64_t>(bytes, kInlineBytes));
    std::memcpy(frames.data() + static_cast<size_t>(rank) * kFrameBytes, frame.data(), used);
  };
  put(context_->rank, own);
  for (Peer& peer : peers_) {
    SpinUntil([&peer] { return IsReadable(peer.socket); });
    peer.receive[turn]->waitRecv();
    put(peer.rank, peer.arrived[turn]);
  }
  return frames;
}

}  // namespace varlen::dist
