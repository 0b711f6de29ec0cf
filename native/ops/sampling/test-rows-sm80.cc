#include <cmath>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/sampling/device.h"
#include "ops/sampling/sampling.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::sampling::testing {
namespace {

using namespace varlen::testing;

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};

std::vector<int32_t> RandomBits(int64_t count, uint32_t seed) {
  std::vector<int32_t> bits;
  uint32_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    bits.push_back(static_cast<int32_t>(state ^ (state << 16)));
  }
  return bits;
}

// tokens, logprobs, policyLogprobs, keptLogMass; in `found` the rows without a distribution.
template <class T>
std::vector<Tensor> Emulated(const Forward& op, const Run& run = {}, double* found = nullptr) {
  const int64_t rows = op.logits.shape[0], words = op.logits.shape[1];
  const auto logits = Upload<T>(op.logits);
  const auto random = Upload(op.random);
  const simt::GlobalArray<int32_t> tokens(rows);
  const simt::GlobalArray<float> logprobs(rows), policy(rows), kept(rows);
  const simt::GlobalArray<double> bad(2);
  Emulate<DeviceSample<T>>(
      run.blocks,
      {logits.data(), random.data(), rows, words, op.temperature, op.top_k, op.top_p, op.min_p,
       tokens.data(), logprobs.data(), policy.data(), kept.data(), words * sizeof(T) % 16 == 0},
      run.seed);
  Emulate<DeviceBadRows>(1, {tokens.data(), rows, bad.data()}, run.seed);
  if (found != nullptr) std::copy(bad.begin(), bad.end(), found);
  return {Download(tokens), Download(logprobs), Download(policy), Download(kept)};
}

template <class T>
void CheckDraw(int64_t rows, int64_t words, float temperature, int64_t top_k, float top_p,
               float min_p, uint32_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " words " << words << " temperature " << temperature << " topK "
                                 << top_k << " topP " << top_p << " minP " << min_p);
  Forward op;
  op.logits = Random(DTypeOf<T>::value, {rows, words}, seed, 3);
  op.random = Host(RandomBits(rows, seed));
  op.temperature = temperature;
  op.top_k = top_k;
  op.top_p = top_p;
  op.min_p = min_p;
  const std::vector<Tensor> got = Emulated<T>(op, {.seed = seed}), want = ReferenceOutputs(op);
  for (size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(Difference(got[i], want[i], 2e-6) == "");
  }
}

TEST_CASE("CUDA sampling: agrees with the reference for every filter, temperature and dtype") {
  uint32_t seed = 1;
  for (float temperature : {0.0f, 0.3f, 1.0f, 2.5f}) {
    for (int64_t top_k : {0, 1, 20}) {
      const float top_p = seed % 3 == 0 ? 0.9f : seed % 3 == 1 ? 1.0f : 0.3f;
      const float min_p = seed % 2 == 0 ? 0.0f : 0.05f;
      CheckDraw<float>(2, 257, temperature, top_k, top_p, min_p, ++seed);
      // Few values: ties at the cuts.
      CheckDraw<bfloat16>(2, 1000, temperature, top_k, 0.9f, min_p, ++seed);
      CheckDraw<half>(1, 31, temperature, top_k, top_p, min_p, ++seed);
    }
  }
  CheckDraw<float>(1, 1, 1, 0, 0.5f, 0, 3);
  CheckDraw<bfloat16>(1, 5003, 0.7f, 100000, 0.95f, 0.01f, 4);
}

TEST_CASE("CUDA sampling: of equal words at a cut the first by index stay") {
  Forward op;
  std::vector<double> row(300, 1.0);
  row[7] = 2;
  op.logits = FromValues(DType::kF32, {1, 300}, row);
  op.top_k = 5;  // words 7 and 0 .. 3
  for (double u : {0.0, 0.3, 0.5, 0.999}) {
    op.random =
        Host(std::vector<int32_t>{static_cast<int32_t>(static_cast<uint32_t>(u * 4294967296.0))});
    const std::vector<Tensor> got = Emulated<float>(op), want = ReferenceOutputs(op);
    CHECK(Get(got[0], 0) == Get(want[0], 0));
    CHECK((Get(got[0], 0) <= 3 || Get(got[0], 0) == 7));
    CHECK(std::abs(Get(got[3], 0) - Get(want[3], 0)) <= 2e-6);
  }
}

TEST_CASE("CUDA sampling: eight orders and grids give the same bits") {
  Forward op;
  op.logits = Random(DType::kF16, {3, 90}, 8, 2);
  op.random = Host(RandomBits(3, 9));
  op.temperature = 0.8f;
  op.top_k = 40;
  op.top_p = 0.9f;
  const std::vector<Tensor> one = Emulated<half>(op, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(Emulated<half>(op, {seed, static_cast<int64_t>(1 + seed % 3)}), one));
  }
}

TEST_CASE("CUDA sampling: forbidden words are never drawn, rows without a distribution counted") {
  Forward op;
  op.logits = Random(DType::kF32, {5, 60}, 3);
  for (int64_t v = 0; v < 60; ++v) {
    if (v != 33 && v != 34) Set(op.logits, v, -INFINITY);
    Set(op.logits, 2 * 60 + v, -INFINITY);
  }
  Set(op.logits, 4 * 60 + 11, NAN);
  op.random = Host(RandomBits(5, 4));
  double found[2];
  const std::vector<Tensor> got = Emulated<float>(op, {.seed = 2}, found);
  CHECK((Get(got[0], 0) == 33 || Get(got[0], 0) == 34));
  CHECK(found[0] == 2);
  CHECK(found[1] == 2);
  CHECK(Get(got[0], 2) == -1);
  CHECK(Get(got[0], 4) == -1);
  CHECK(Get(got[0], 3) >= 0);
}

}  // namespace
}  // namespace varlen::sampling::testing
