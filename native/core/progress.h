#pragma once

#include <atomic>
#include <cstdint>

namespace varlen {

// How far a stream is. Calls are numbered from 1; a call's number is its ticket.
struct Progress {
  std::atomic<uint64_t> enqueued{0};
  std::atomic<uint64_t> completed{0};
};

}  // namespace varlen
