#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cuda/api.h"
#include "core/cuda/ipc.h"

// CUDA without a GPU: memory is the host's, every stream has a thread that executes it in order,
// kernels run in the SIMT emulator. Calls fail when a script says so. For tests only: the shipped
// binary has none of it.
namespace varlen::cuda::fake {

struct Machine {
  int runtime_version = 13000;
  int driver_version = 13000;
  int devices = 1;
  int compute_major = 8;
  int multiprocessors = 2;
  int64_t memory_bytes = int64_t{256} << 20;
};

// The table; every copy of it is the same machine.
CudaRuntime Runtime();
// Processes share memory as those of one GPU do: what Share() was called for before it was
// allocated.
CudaIpc Ipc();
void Share();

// Sets the machine up anew: no errors, nothing scripted. Memory and streams stay.
void Reset(const Machine& machine = {});

// The call after `after` more of its kind gives `error`. `call` is the name of the table's entry.
// "kernel" stands for the execution of a launched kernel: an error of the stream, found later.
void FailNext(const std::string& call, int error, int after = 0);
// Calls of a kind so far.
int64_t Count(const std::string& call);

// Streams stand still, or go on.
void Hold();
void Go();
// What every entry of a stream takes longer.
void Delay(double ms);

// Bytes on the GPU that are allocated, and likewise pinned.
int64_t AllocatedBytes();
int64_t PinnedBytes();
// What the emulator said about the kernel that last failed.
std::string LastFault();

// The files to try as cuBLASLt, for GPUs whose first product is still to come; none at first. A
// library made for this has `void fakeEnqueueBy(void (*enqueue)(void* stream, void (*work)(void*),
// void* argument))` to be told how work joins a stream.
void UseCublasLt(const std::vector<std::string>& files);

// One command as text, for callers that have no C++: "fail allocate 2 [after]", "hold", "go",
// "delay 5", "memory 1000000", "devices 0", "driver 12040", "major 7", "cublaslt <file>...",
// "reset", "share", "uuid 7" (another
// GPU than that of other processes). Returns what is wrong with it, "" if nothing; "fault" and
// "count launch" return what was asked.
std::string Command(const std::string& text);

}  // namespace varlen::cuda::fake
