#include "core/peak.h"

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/peak.cc"
#include "hwy/foreach_target.h"
//
#include <atomic>
#include <chrono>

#include "core/parallel.h"
#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// 12 independent chains: more than latency times issue width of any of our CPUs.
constexpr int kChains = 12;

// Runs `rounds` x 12 multiply-adds. Seed and result keep the compiler from dropping calls.
float MultiplyAddChains(int64_t rounds, float seed) {
  const Floats d;
  Vector chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(d, seed + static_cast<float>(i));
  const Vector factor = hn::Set(d, 0.999f), term = hn::Set(d, 1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], factor, term);
  }
  Vector sum = hn::Zero(d);
  for (int i = 0; i < kChains; ++i) sum = hn::Add(sum, chain[i]);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

double PeakOfThisThread(double ms) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 10000;  // about 30 us
  static std::atomic<float> sink;
  const auto start = Clock::now();
  int64_t rounds = 0;
  double seconds;
  do {
    sink.store(MultiplyAddChains(kRounds, sink.load(std::memory_order_relaxed)),
               std::memory_order_relaxed);
    rounds += kRounds;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds * 1e3 < ms);
  return 2.0 * kChains * static_cast<double>(kLanes * rounds) / seconds * 1e-9;
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

namespace varlen {
namespace {
constexpr IsaTable<double(double)> kPeak = VARLEN_ISA_TABLE(PeakOfThisThread);
}  // namespace

double MeasurePeak(int threads, double ms) {
  // One piece per thread: nobody starts before all have arrived, so each runs on a thread of its
  // own.
  std::vector<double> peaks(static_cast<size_t>(threads));
  std::atomic<int> arrived{0};
  const Status status = ParallelFor(threads, [&](int64_t piece, int) {
    arrived.fetch_add(1);
    while (arrived.load() < threads) YieldThread();
    peaks[static_cast<size_t>(piece)] = kPeak.Get()(ms);
  });
  double sum = 0;
  for (double peak : peaks) sum += peak;
  return status.ok() ? sum : 0;
}

}  // namespace varlen
#endif
