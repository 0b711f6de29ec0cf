#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/simt/simt.h"

// Helpers of the emulator's own tests.
namespace varlen::simt::testing {

// A kernel whose body is a callable: Run(32, 0, [&](unsigned char* shared) { ... }).
template <int kThreadsPerBlock, class Body>
struct BodyKernel {
  static constexpr int kThreads = kThreadsPerBlock;
  struct Params {
    const Body* body;
  };
  static void Run(const Params& params, unsigned char* shared) { (*params.body)(shared); }
};

template <int kThreads, class Body>
LaunchResult RunBody(int64_t shared_bytes, const LaunchOptions& options, const Body& body) {
  return Launch<BodyKernel<kThreads, Body>>(1, shared_bytes, {&body}, options);
}
template <int kThreads, class Body>
LaunchResult RunBody(int64_t shared_bytes, const Body& body) {
  return RunBody<kThreads>(shared_bytes, {}, body);
}

// Small whole numbers: every product and sum of a test is exact in float.
template <class T>
std::vector<T> SmallIntegers(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(T(static_cast<float>(static_cast<int>(random() % 17) - 8)));
  }
  return values;
}

template <class T>
std::vector<T> NormalValues(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(T(normal(random)));
  return values;
}

}  // namespace varlen::simt::testing
