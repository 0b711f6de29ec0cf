#pragma once

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/bench.h"
#include "core/op_test.h"

// Benches of ops that move memory rather than multiply: bytes per second beside those of a copy
// that reads and writes as much by turns with it.
//   varlen_bench_<op> [--quick] [--threads N] [--case TEXT]
namespace varlen::bench {

struct Flags {
  double seconds = 0.5;
  int threads = 1;
  std::string only;
};

inline Flags ReadFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) flags.seconds = 0.05;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
      flags.threads = std::atoi(argv[++i]);
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) flags.only = argv[++i];
  }
  return flags;
}

// Seconds of copying `bytes` / 2 from one place to another with the pool's threads.
inline double CopySeconds(std::vector<char>& from, std::vector<char>& to, int64_t bytes) {
  const double start = Seconds();
  Status status = ParallelForRange(bytes / 2, 1 << 20, [&](int64_t begin, int64_t end) {
    std::memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
  });
  return status.ok() ? Seconds() - start : 1e9;
}

// Prints the rate of an op that must read and write `bytes`, beside that of the copy.
template <class Op>
void MeasureBytes(const Flags& flags, const std::string& name, Op op, int64_t bytes) {
  if (name.find(flags.only) == std::string::npos) return;
  SetNumThreads(flags.threads);
  testing::MakeOutputs make;
  op.Visit(make);
  if (!op.Validate().ok() || !Run(op).ok()) {
    std::fprintf(stderr, "%s does not run\n", name.c_str());
    return;
  }
  std::vector<char> from(static_cast<size_t>(bytes / 2), 1), to(static_cast<size_t>(bytes / 2));
  double best = 1e9, best_copy = 1e9;
  const double end = Seconds() + flags.seconds;
  for (int slice = 0; slice < 5 || Seconds() < end; ++slice) {
    best_copy = std::min(best_copy, CopySeconds(from, to, bytes));
    const double start = Seconds();
    Status status = Run(op);
    if (status.ok()) best = std::min(best, Seconds() - start);
  }
  const double rate = static_cast<double>(bytes) / best * 1e-9;
  const double copy = static_cast<double>(bytes) / best_copy * 1e-9;
  std::printf(
      "{\"op\":\"%s\",\"case\":\"%s\",\"threads\":%d,\"isa\":\"%s\",\"us\":%.1f,\"gbps\":%.2f,"
      "\"copyGbps\":%.2f,\"ratio\":%.3f}\n",
      Op::kName, name.c_str(), flags.threads, NameOf(ActiveIsa()), best * 1e6, rate, copy,
      rate / copy);
  std::fflush(stdout);
}

}  // namespace varlen::bench
