#pragma once

#include <gloo/transport/buffer.h>
#include <gloo/transport/context.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

// The small messages that go ahead of every collective, on connections of their own.
//
// Gloo's collectives need four threads one after another for a message: the receiver first says
// that it is ready, and each connection is read by an I/O thread that wakes the one that waits.
// Buffers that are bound to a connection need no leave, and a synchronous connection is read by who
// waits.
namespace varlen::dist {

using Bytes = std::vector<uint8_t>;

// A frame: u64 length of the message, then as much of it as fits. A message begins with the 32
// bytes of signature of src/dist/signature.ts. 1 KiB holds the headers of the alignment protocol.
inline constexpr size_t kFrameBytes = 1024;
inline constexpr size_t kInlineBytes = kFrameBytes - sizeof(uint64_t);

class FrameLinks {
 public:
  // `context`: has a connected pair for each peer. `sockets`: their descriptors in rank order, this
  // rank left out.
  FrameLinks(std::shared_ptr<gloo::transport::Context> context, const std::vector<int>& sockets);

  // The frames of all ranks, [size, kFrameBytes]; throws gloo::IoException when a peer is lost.
  Bytes Gather(std::span<const uint8_t> message);

 private:
  // Two of everything, used by turns: a peer may send its next frame while this rank has not read
  // the last one, and not the one after, for which it would need this rank's next one.
  struct Peer {
    int rank;
    int socket;
    std::array<Bytes, 2> arrived;
    std::array<std::unique_ptr<gloo::transport::Buffer>, 2> send;
    std::array<std::unique_ptr<gloo::transport::Buffer>, 2> receive;
  };

  const std::shared_ptr<gloo::transport::Context> context_;
  std::array<Bytes, 2> own_;
  std::vector<Peer> peers_;
  size_t turn_ = 0;
};

}  // namespace varlen::dist
