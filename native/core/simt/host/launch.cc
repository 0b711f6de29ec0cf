#include "core/simt/host/launch.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>

#include "core/parallel.h"

namespace varlen::simt {
namespace {

constexpr int64_t kMaxSharedBytes = 227 * 1024;  // sm_90; sm_80: 163 KiB, sm_86, 89, 120: 99 KiB

// The blocks [first, last) to their end, interleaved.
void RunBlocks(std::vector<std::unique_ptr<Block>>& blocks, int64_t first, int64_t last,
               uint64_t seed, void (*body)(const void*, unsigned char*), const void* params) {
  const auto run_thread = [body, params] { body(params, Block::Current().shared.data()); };
  const FunctionRef<void> run(run_thread);
  for (int64_t index = first; index < last; ++index) blocks[index - first]->Begin(index, seed, run);
  for (;;) {
    bool moved = false, finished = true;
    for (int64_t index = first; index < last; ++index) {
      Block& block = *blocks[index - first];
      if (block.finished()) continue;
      moved |= block.Sweep();
      finished = finished && block.finished();
    }
    if (finished) break;
    if (moved) continue;
    std::string text = "nobody can go on";
    for (int64_t index = first; index < last; ++index) {
      text += '\n';
      text += blocks[index - first]->Waits();
    }
    throw Fault(FaultKind::kDeadlock, text);
  }
  for (int64_t index = first; index < last; ++index) blocks[index - first]->CheckExit();
}

void Merge(const std::vector<BankCount>& from, std::vector<BankCount>& into) {
  for (const BankCount& count : from) {
    const auto same = std::find_if(into.begin(), into.end(), [&](const BankCount& other) {
      return other.site.line() == count.site.line() && other.site.column() == count.site.column() &&
             other.site.file_name() == count.site.file_name();
    });
    if (same == into.end()) {
      into.push_back(count);
      continue;
    }
    same->requests += count.requests;
    same->wavefronts += count.wavefronts;
    same->ideal += count.ideal;
  }
}

}  // namespace

LaunchResult LaunchBody(int threads, int64_t grid, int64_t shared_bytes,
                        const LaunchOptions& options, void (*body)(const void*, unsigned char*),
                        const void* params) {
  LaunchResult result;
  if (threads < kWarpSize || threads > kMaxThreads || threads % kWarpSize != 0 || grid < 0 ||
      grid >= int64_t{1} << 31 || shared_bytes < 0 || shared_bytes > kMaxSharedBytes ||
      options.resident_blocks < 1) {
    result.fault.emplace(FaultKind::kLaunch, std::to_string(grid) + " blocks of " +
                                                 std::to_string(threads) + " threads with " +
                                                 std::to_string(shared_bytes) +
                                                 " bytes of shared memory");
    return result;
  }
  const int64_t resident = options.resident_blocks;
  const int64_t rounds = (grid + resident - 1) / resident;
  const int64_t pieces = options.parallel ? std::min<int64_t>(rounds, NumThreads()) : 1;
  std::mutex mutex;
  const auto run_piece = [&](int64_t piece, int) {
    std::vector<std::unique_ptr<Block>> blocks;
    for (int64_t i = 0; i < std::min(resident, grid); ++i) {
      blocks.push_back(std::make_unique<Block>(threads, shared_bytes, grid));
      if (options.count_bank_conflicts) blocks.back()->banks.Enable();
    }
    try {
      for (int64_t round = piece; round < rounds; round += pieces) {
        RunBlocks(blocks, round * resident, std::min(grid, (round + 1) * resident), options.seed,
                  body, params);
      }
    } catch (const Fault& fault) {
      const std::lock_guard lock(mutex);
      if (!result.fault.has_value()) result.fault = fault;
    }
    const std::lock_guard lock(mutex);
    for (const auto& block : blocks) Merge(block->banks.counts(), result.bank_conflicts);
  };
  if (!options.parallel) {
    run_piece(0, 0);
    return result;
  }
  const Status status = ParallelFor(pieces, run_piece);
  if (!status.ok()) {
    result.fault.emplace(FaultKind::kLaunch, status.message);
  }
  return result;
}

}  // namespace varlen::simt
