#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/simt/host/block.h"

namespace varlen::simt {

struct LaunchOptions {
  // Of the generator that orders warps and lands asynchronous copies. A test runs several.
  uint64_t seed = 0;
  // Blocks that run side by side, interleaved: more than one for kernels whose blocks talk.
  int resident_blocks = 1;
  // Spread over the host's threads, for kernels without atomics: same results, sooner.
  bool parallel = false;
  bool count_bank_conflicts = false;
};

struct LaunchResult {
  std::optional<Fault> fault;             // empty: the kernel ran to its end
  std::vector<BankCount> bank_conflicts;  // per line, when asked for

  bool ok() const { return !fault.has_value(); }
  const char* message() const { return ok() ? "" : fault->what(); }
};

// What the template below hands over: `body` runs one thread of one block.
LaunchResult LaunchBody(int threads, int64_t grid, int64_t shared_bytes,
                        const LaunchOptions& options, void (*body)(const void*, unsigned char*),
                        const void* params);

// Runs Kernel::Run(params, shared) in `grid` blocks of Kernel::kThreads threads.
template <class Kernel>
LaunchResult Launch(int64_t grid, int64_t shared_bytes, const typename Kernel::Params& params,
                    const LaunchOptions& options = {}) {
  return LaunchBody(
      Kernel::kThreads, grid, shared_bytes, options,
      [](const void* p, unsigned char* shared) {
        Kernel::Run(*static_cast<const typename Kernel::Params*>(p), shared);
      },
      &params);
}

}  // namespace varlen::simt
