#include <cmath>
#include <vector>

#include "core/cross-entropy-emulated.h"
#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/cross-entropy/kernels.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::cross_entropy::testing {
namespace {

using namespace varlen::testing;

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};
// Of the op's outputs, then of the others.
enum Output { kLoss, kDLogits = 5, kBadWeights, kFound };
using Results = std::vector<Doubles>;

Forward MakeForward(DType dtype, int64_t tokens, int64_t vocab, bool options, uint32_t seed) {
  Forward op;
  op.logits = Random(dtype, {tokens, vocab}, seed, 2);
  op.tokens = MakeTokens(tokens, vocab, options);
  if (options) op.options = EveryOption(seed % 2 == 0);
  return op;
}

Backward MakeBackward(const Forward& forward) {
  Backward op;
  op.upstream = MakeUpstream(forward.logits.shape[0], ReferenceOutputs(forward));
  op.logits = forward.logits;
  op.tokens = forward.tokens;
  op.options = forward.options;
  return op;
}

template <class T>
Results Emulate(const Forward& f, const Backward& b, const Run& run = {}) {
  const int64_t tokens = f.logits.shape[0], vocab = f.logits.shape[1];
  EmulatedCrossEntropy loss(f.tokens, f.options, b.upstream, tokens, vocab);
  const auto logits = Upload<T>(f.logits);
  const simt::GlobalArray<T> d_logits(tokens * vocab);
  const auto targets = Upload(f.tokens.target_ids);
  const simt::GlobalArray<double> found(2);
  const bool aligned = vocab * sizeof(T) % 16 == 0;
  const DeviceLogits<T> in{logits.data(),
                           vocab,
                           Given(loss.mask),
                           Given(loss.weights),
                           targets.data(),
                           tokens,
                           vocab,
                           {f.options.temperature, f.options.softcap, f.options.logit_scale},
                           aligned};
  using varlen::testing::Emulate;
  Emulate<DeviceTargetCheck>(1, {in.mask, in.weights, targets.data(), tokens, vocab, found.data()},
                             run.seed);
  Emulate<Rows<T>>(run.blocks, {in, loss.sink()}, run.seed);
  Emulate<CrossEntropyTotals>(1, loss.totals(), run.seed);
  const Doubles bad = Widen(loss.bad);
  Emulate<CrossEntropyTotals>(1, loss.factor_alone(), run.seed);
  Emulate<Gradients<T>>(
      run.blocks, {in, loss.lse.data(), loss.source(), d_logits.data(), vocab, aligned}, run.seed);
  Results results = loss.outputs();
  for (const Doubles& more : {Widen(d_logits), bad, Widen(found)}) results.push_back(more);
  return results;
}

// What stands in rows that do not count may be found by the check of the weights alone.
bool Same(Results a, Results b) {
  a.resize(kBadWeights);
  b.resize(kBadWeights);
  return SameBits(a, b);
}

template <class T>
void CheckShape(int64_t tokens, int64_t vocab, bool options, uint32_t seed) {
  CAPTURE(vocab);
  CAPTURE(options);
  CAPTURE(NameOf(DTypeOf<T>::value));
  const Forward f = MakeForward(DTypeOf<T>::value, tokens, vocab, options, seed);
  const Backward b = MakeBackward(f);
  const Results got = Emulate<T>(f, b, {.seed = seed});
  const std::vector<Tensor> want = ReferenceOutputs(f);
  for (size_t i = kLoss; i < kDLogits; ++i) CHECK(ErrorOf(got[i], want[i]) <= 2e-6);
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  CHECK(ErrorOf(got[kDLogits], ReferenceOutputs(b)[0]) <= 4e-6 + unit);
  CHECK(got[kBadWeights][0] == 0);
  CHECK(got[kFound][0] == 0);
}

TEST_CASE("CUDA cross entropy: both passes agree with the reference, with every option or none") {
  uint32_t seed = 1;
  for (int64_t vocab : {2, 33, 512, 2500}) {
    for (bool options : {false, true, true}) {
      CheckShape<float>(9, vocab, options, ++seed);
      CheckShape<bfloat16>(9, vocab, options, seed);
      CheckShape<half>(9, vocab, options, seed);
    }
  }
}

TEST_CASE(
    "CUDA cross entropy: any grid and order gives the same bits, and rows that do not count "
    "reach none") {
  const Forward f = MakeForward(DType::kF32, 12, 300, true, 4);
  const Backward b = MakeBackward(f);
  const Results one = Emulate<float>(f, b, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 6; ++seed) {
    CHECK(Same(Emulate<float>(f, b, {seed, static_cast<int64_t>(seed + 1)}), one));
  }
  Forward dirty = f;
  std::vector<int32_t> targets(f.tokens.target_ids.data(), f.tokens.target_ids.data() + 12);
  for (int64_t t : {3, 8, 2, 9}) {  // masked, then without weight
    targets[static_cast<size_t>(t)] = -5;
    for (int64_t v = 0; v < 300; ++v) dirty.logits.data<float>()[t * 300 + v] = NAN;
    if (t % 5 == 3) dirty.tokens.weights.data<float>()[t] = NAN;
  }
  dirty.tokens.target_ids = Host(targets);
  const Results got = Emulate<float>(dirty, b);
  CHECK(Same(got, one));
  CHECK(got[kBadWeights][0] == 0);
  CHECK(got[kFound][0] == 0);
  for (int64_t v = 0; v < 300; ++v) CHECK(got[kDLogits][static_cast<size_t>(3 * 300 + v)] == 0);
}

TEST_CASE("CUDA cross entropy: bad weights are counted, and nothing that counts is a loss of 0") {
  Forward f = MakeForward(DType::kF32, 12, 10, true, 4);
  const Backward b = MakeBackward(f);
  f.tokens.weights.data<float>()[5] = -1;
  f.tokens.weights.data<float>()[7] = INFINITY;
  const Results bad = Emulate<float>(f, b);
  CHECK(bad[kBadWeights] == Doubles{2, 5});
  std::fill_n(f.tokens.loss_mask.data<uint8_t>(), 12, uint8_t{0});
  const Results none = Emulate<float>(f, b);
  CHECK(none[kLoss][0] == 0);
  CHECK(none[kBadWeights][0] == 0);
  for (double gradient : none[kDLogits]) CHECK(gradient == 0);
}

}  // namespace
}  // namespace varlen::cross_entropy::testing
