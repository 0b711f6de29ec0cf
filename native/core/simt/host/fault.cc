#include "core/simt/host/fault.h"

#include <cstring>

#include "core/simt/host/block.h"

namespace varlen::simt {

const char* FaultName(FaultKind kind) {
  switch (kind) {
    case FaultKind::kDivergence:
      return "divergent collective";
    case FaultKind::kDeadlock:
      return "deadlock";
    case FaultKind::kSharedRange:
      return "shared memory address";
    case FaultKind::kGlobalRange:
      return "global memory address";
    case FaultKind::kAlignment:
      return "alignment";
    case FaultKind::kInFlight:
      return "asynchronous operation in flight";
    case FaultKind::kAsyncFence:
      return "missing fence.proxy.async";
    case FaultKind::kBarrier:
      return "barrier";
    case FaultKind::kTensorMap:
      return "tensor map";
    case FaultKind::kDescriptor:
      return "wgmma descriptor";
    case FaultKind::kRegisters:
      return "setmaxnreg";
    case FaultKind::kExit:
      return "exit";
    case FaultKind::kLaunch:
      return "launch";
  }
  return "?";
}

std::string Describe(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return std::string(slash != nullptr ? slash + 1 : site.file_name()) + ":" +
         std::to_string(site.line());
}

void Stop(FaultKind kind, const std::string& problem, const Site& site) {
  const Block& block = Block::Current();
  const int thread = block.current_thread();
  throw Fault(kind, problem + "; thread " + std::to_string(thread) + " (warp " +
                        std::to_string(thread / kWarpSize) + ", lane " +
                        std::to_string(thread % kWarpSize) + ") of block " +
                        std::to_string(block.index()) + " at " + Describe(site));
}

}  // namespace varlen::simt
