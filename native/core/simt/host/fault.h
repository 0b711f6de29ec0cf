#pragma once

#include <cstdint>
#include <exception>
#include <source_location>
#include <string>

namespace varlen::simt {

// Where in the kernel's source an operation stands. Every emulated operation takes one as its last,
// defaulted argument, so that a report names the line of the kernel.
using Site = std::source_location;

enum class FaultKind : uint8_t {
  kDivergence,   // lanes of one warp (threads of one warpgroup) at different collectives
  kDeadlock,     // nobody can go on
  kSharedRange,  // outside the block's shared memory
  kGlobalRange,  // outside every registered allocation
  kAlignment,
  kInFlight,    // touches bytes or registers that an asynchronous operation has not delivered
  kAsyncFence,  // the async proxy reads what ordinary stores wrote, without fence.proxy.async
  kBarrier,     // wrong counts, missing initialisation
  kTensorMap,   // a TMA descriptor or box that the hardware refuses
  kDescriptor,  // a wgmma shared-memory descriptor likewise
  kRegisters,   // setmaxnreg beyond the pool
  kExit,        // a block ended with asynchronous work under way
  kLaunch,      // an impossible launch shape
};

const char* FaultName(FaultKind kind);

// Why an emulated kernel was stopped. Thrown inside the emulator, returned by Launch().
struct Fault : std::exception {
  Fault(FaultKind kind, const std::string& problem)
      : kind(kind), message(std::string(FaultName(kind)) + ": " + problem) {}
  const char* what() const noexcept override { return message.c_str(); }

  FaultKind kind;
  std::string message;
};

// "forward-sm80.h:120"
std::string Describe(const Site& site);

// Stops the running thread's kernel: names the thread, its block and the line.
[[noreturn]] void Stop(FaultKind kind, const std::string& problem, const Site& site);

}  // namespace varlen::simt
