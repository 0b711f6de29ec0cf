#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/peak.h"

// How the native benches measure: the best of short slices, each beside a slice of the FMA peak
// loop, repeated until two runs agree. A shared machine slows both alike; what survives is the
// ratio.
namespace varlen::bench {

struct Rate {
  double gflops;
  double peak;
  double ratio() const { return gflops / peak; }
};

inline double Seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// One run: about `seconds` of slices.
template <class Fn>
Rate MeasureOnce(const Fn& fn, double flops, int threads, double seconds) {
  Rate best{0, 0};
  const double end = Seconds() + seconds;
  for (int slice = 0; slice < 5 || Seconds() < end; ++slice) {
    best.peak = std::max(best.peak, MeasurePeak(threads, 2.0));
    const double start = Seconds();
    fn();
    best.gflops = std::max(best.gflops, flops / (Seconds() - start) * 1e-9);
  }
  return best;
}

// `fn` does `flops` floating-point operations per call.
template <class Fn>
Rate Measure(const Fn& fn, double flops, int threads, double seconds) {
  SetNumThreads(threads);
  fn();
  Rate rate = MeasureOnce(fn, flops, threads, seconds);
  for (int attempt = 0; attempt < 4; ++attempt) {
    const Rate again = MeasureOnce(fn, flops, threads, seconds);
    const bool agree = std::abs(again.ratio() - rate.ratio()) <= 0.05 * rate.ratio();
    rate = {std::max(rate.gflops, again.gflops), std::max(rate.peak, again.peak)};
    if (agree) break;
  }
  return rate;
}

inline void Print(const char* op, const std::string& what, int threads, const Rate& rate) {
  std::printf(
      "{\"op\":\"%s\",\"case\":\"%s\",\"threads\":%d,\"isa\":\"%s\",\"gflops\":%.1f,"
      "\"peak\":%.1f,\"ratio\":%.3f}\n",
      op, what.c_str(), threads, NameOf(ActiveIsa()), rate.gflops, rate.peak, rate.ratio());
  std::fflush(stdout);
}

}  // namespace varlen::bench
