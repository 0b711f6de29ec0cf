#include <cmath>
#include <string>
#include <vector>

#include "core/cross-entropy-emulated.h"
#include "core/linear-head-emulated.h"
#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"
#include "ops/cross-entropy-from-hidden/kernels.h"

// The kernels, run by the host emulator, against the float64 reference. The tiles themselves are
// tested with the policy loss.
namespace varlen::cross_entropy_from_hidden::testing {
namespace {

using namespace varlen::testing;

Forward MakeForward(DType dtype, int64_t tokens, int64_t size, int64_t vocab, bool options,
                    uint32_t seed) {
  Forward op;
  op.head.hidden = Random(dtype, {tokens, size}, seed);
  op.head.weight = Random(dtype, {vocab, size}, seed + 1, 2 / std::sqrt(static_cast<double>(size)));
  op.tokens = MakeTokens(tokens, vocab, options);
  if (!options) return op;
  op.head.bias = Random(dtype, {vocab}, seed + 2, 0.5);
  op.options = EveryOption(seed % 2 == 0);
  return op;
}

Backward MakeBackward(const Forward& forward) {
  Backward op;
  op.upstream = MakeUpstream(forward.head.total_tokens(), ReferenceOutputs(forward));
  op.head = forward.head;
  op.tokens = forward.tokens;
  op.options = forward.options;
  return op;
}

// Loss, perToken, logprobs, entropies, lse, dHidden, dWeight, dBias.
using Results = std::vector<Doubles>;

template <class T>
Results Emulate(const Forward& f, const Backward& b, const EmulatedRun& run = {}) {
  EmulatedHead<T> head(f.head, f.tokens.target_ids, f.options.shape(), run);
  EmulatedCrossEntropy loss(f.tokens, f.options, b.upstream, f.head.total_tokens(),
                            f.head.vocab_size());
  CHECK(head.Statistics({Given(loss.mask), Given(loss.weights)}, loss.sink()) == "");
  CHECK(head.template Launch<CrossEntropyTotals>(1, loss.totals()) == "");
  CHECK(loss.bad[0] == 0);
  CHECK(head.template Launch<CrossEntropyTotals>(1, loss.factor_alone()) == "");
  CHECK(head.Gradients(loss.source(), loss.lse.data()) == "");
  Results results = loss.outputs();
  for (const Doubles& gradient :
       {Widen(head.d_hidden()), Widen(head.d_weight()), Widen(head.d_bias())}) {
    results.push_back(gradient);
  }
  return results;
}

template <class T>
void CheckShape(int64_t tokens, int64_t size, int64_t vocab, bool options, uint32_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " " << tokens << " x " << size << " x " << vocab << ", options "
                                 << options);
  const Forward f = MakeForward(DTypeOf<T>::value, tokens, size, vocab, options, seed);
  const Backward b = MakeBackward(f);
  const Results got = Emulate<T>(f, b, {.seed = seed});
  std::vector<Tensor> want = ReferenceOutputs(f);
  for (const Tensor& gradient : ReferenceOutputs(b)) want.push_back(gradient);
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    const bool product = i == 5 || i == 6;
    CHECK(ErrorOf(got[i], want[i]) <= 5e-6 + (product ? 1.5 * unit : 0));
  }
}

TEST_CASE("CUDA cross entropy from hidden: agrees with the reference, with every option or none") {
  uint32_t seed = 1;
  for (bool options : {false, true, true}) {
    ++seed;
    CheckShape<float>(9, 13, 150, options, seed);
    CheckShape<bfloat16>(9, 13, 150, options, seed);
    CheckShape<half>(9, 13, 150, options, seed);
  }
  CheckShape<bfloat16>(300, 72, 301, true, 8);
}

TEST_CASE(
    "CUDA cross entropy from hidden: eight orders give the same bits, and rows that do not count "
    "reach none") {
  const Forward f = MakeForward(DType::kF16, 25, 24, 270, true, 4);
  const Backward b = MakeBackward(f);
  const Results one = Emulate<half>(f, b, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(
        Emulate<half>(f, b, {.seed = seed, .blocks = static_cast<int64_t>(1 + seed % 4)}), one));
  }
  Forward dirty = f;
  Backward dirty_back = b;
  std::vector<int32_t> targets(f.tokens.target_ids.data(), f.tokens.target_ids.data() + 25);
  dirty.head.hidden = CopyAs(f.head.hidden, DType::kF16);
  dirty.tokens.weights = CopyAs(f.tokens.weights, DType::kF32);
  for (int64_t t : {3, 8, 2, 9}) {  // masked, then without weight
    targets[static_cast<size_t>(t)] = -5;
    for (int64_t k = 0; k < 24; ++k) Set(dirty.head.hidden, t * 24 + k, NAN);
    if (t % 5 == 3) dirty.tokens.weights.data<float>()[t] = NAN;
    for (const Tensor& tensor : {b.upstream.d_per_token, b.upstream.d_logprobs}) {
      Set(tensor, t, NAN);
    }
  }
  dirty.tokens.target_ids = Host(targets);
  dirty_back.head = dirty.head;
  dirty_back.tokens = dirty.tokens;
  CHECK(SameBits(Emulate<half>(dirty, dirty_back), one));
}

TEST_CASE("CUDA cross entropy from hidden: without a token that counts all is zero") {
  Forward f = MakeForward(DType::kF32, 6, 5, 20, true, 4);
  std::fill_n(f.tokens.loss_mask.data<uint8_t>(), 6, uint8_t{0});
  for (const std::vector<double>& output : Emulate<float>(f, MakeBackward(f))) {
    for (double value : output) CHECK(value == 0);
  }
}

}  // namespace
}  // namespace varlen::cross_entropy_from_hidden::testing
