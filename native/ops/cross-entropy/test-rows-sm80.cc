#include <cmath>
#include <cstring>
#include <vector>

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
// In the order of the op's outputs, then the gradient and the bad weights.
struct Results {
  std::vector<double> loss, per_token, logprobs, entropies, lse, d_logits, bad_weights, found;
};

Forward MakeForward(DType dtype, int64_t tokens, int64_t vocab, bool options, uint32_t seed) {
  Forward op;
  op.logits = Random(dtype, {tokens, vocab}, seed, 2);
  std::vector<int32_t> targets;
  std::vector<double> weights;
  Tensor mask = Tensor::Empty(DType::kU8, {tokens});
  for (int64_t t = 0; t < tokens; ++t) {
    targets.push_back(static_cast<int32_t>((t * 7919 + 3) % vocab));
    mask.data<uint8_t>()[t] = t % 5 != 3;
    weights.push_back(t % 7 == 2 ? 0 : 0.25 * static_cast<double>(t % 4 + 1));
  }
  op.tokens.target_ids = Host(targets);
  if (!options) return op;
  op.tokens.loss_mask = mask;
  op.tokens.weights = FromValues(DType::kF32, {tokens}, weights);
  op.options = {0.75f, 3.0f, 1.25f, 0.125f, 0.0625f, 0.5, seed % 2 == 0};
  return op;
}

Backward MakeBackward(const Forward& forward) {
  const int64_t tokens = forward.logits.shape[0];
  Backward op;
  const std::vector<Tensor> outputs = ReferenceOutputs(forward);
  op.upstream.d_loss = FromValues(DType::kF32, {}, {1.5});
  op.upstream.d_per_token = Random(DType::kF32, {tokens}, 11);
  op.upstream.d_logprobs = Random(DType::kF32, {tokens}, 12);
  op.upstream.d_entropies = Random(DType::kF32, {tokens}, 13);
  op.upstream.entropies = outputs[3];
  op.upstream.lse = outputs[4];
  op.logits = forward.logits;
  op.tokens = forward.tokens;
  op.options = forward.options;
  return op;
}

template <class T>
std::vector<double> Widen(const simt::GlobalArray<T>& array) {
  std::vector<double> values;
  for (const T& value : array) {
    if constexpr (std::is_same_v<T, double>) {
      values.push_back(value);
    } else {
      values.push_back(static_cast<float>(value));
    }
  }
  return values;
}

template <class T>
Results Emulate(const Forward& f, const Backward& b, const Run& run = {}) {
  const int64_t tokens = f.logits.shape[0], vocab = f.logits.shape[1];
  const auto floats = [&](const Tensor& tensor) -> std::vector<float> {
    if (!tensor) return {};
    return {tensor.data<float>(), tensor.data<float>() + tensor.size()};
  };
  const simt::GlobalArray<T> logits(f.logits.data<T>(), tokens * vocab), d_logits(tokens * vocab);
  const simt::GlobalArray<int32_t> targets(f.tokens.target_ids.data(), tokens);
  const simt::GlobalArray<uint8_t> mask(
      f.tokens.loss_mask ? f.tokens.loss_mask.data<uint8_t>() : nullptr,
      f.tokens.loss_mask ? tokens : 0);
  const simt::GlobalArray<float> weights(floats(f.tokens.weights));
  const simt::GlobalArray<float> d_loss(floats(b.upstream.d_loss)),
      d_per_token(floats(b.upstream.d_per_token)), d_logprobs(floats(b.upstream.d_logprobs)),
      d_entropies(floats(b.upstream.d_entropies));
  const simt::GlobalArray<double> losses(tokens), lse(tokens), factor(1), bad(2), found(2);
  const simt::GlobalArray<float> loss(1), per_token(tokens), logprobs(tokens), entropies(tokens);
  const uint8_t* mask_at = mask.size() > 0 ? mask.data() : nullptr;
  const float* weights_at = weights.size() > 0 ? weights.data() : nullptr;
  const bool aligned = vocab * sizeof(T) % 16 == 0;
  const DeviceCrossEntropy options{f.options.label_smoothing, f.options.z_loss, f.options.scale,
                                   f.options.normalize};
  const DeviceLogits<T> in{
      logits.data(),  vocab,
      mask_at,        weights_at,
      targets.data(), tokens,
      vocab,          {f.options.temperature, f.options.softcap, f.options.logit_scale},
      aligned};
  const auto launch = [&]<class Kernel>(int64_t blocks, const typename Kernel::Params& params) {
    const auto result =
        simt::Launch<Kernel>(blocks, Kernel::kSharedBytes, params, {.seed = run.seed});
    CHECK(std::string(result.message()) == "");
  };
  launch.template operator()<DeviceTargetCheck>(
      1, {mask_at, weights_at, targets.data(), tokens, vocab, found.data()});
  launch.template operator()<Rows<T>>(
      run.blocks,
      {in,
       {options, losses.data(), per_token.data(), logprobs.data(), entropies.data(), lse.data()}});
  launch.template operator()<CrossEntropyTotals>(
      1, {options, mask_at, weights_at, losses.data(), tokens, factor.data(), loss.data(),
          bad.data()});
  // The backward pass makes its own factor.
  factor[0] = NAN;
  launch.template operator()<CrossEntropyTotals>(
      1, {options, mask_at, weights_at, nullptr, tokens, factor.data(), nullptr, nullptr});
  launch.template operator()<Gradients<T>>(
      run.blocks, {in,
                   lse.data(),
                   {options, mask_at, weights_at, factor.data(), d_loss.data(), d_per_token.data(),
                    d_logprobs.data(), d_entropies.data(), lse.data(), entropies.data(), vocab},
                   d_logits.data(),
                   vocab,
                   aligned});
  return {Widen(loss), Widen(per_token), Widen(logprobs), Widen(entropies),
          Widen(lse),  Widen(d_logits),  Widen(bad),      Widen(found)};
}

double ErrorOf(const std::vector<double>& got, const Tensor& want) {
  double error = 0, largest = 0;
  for (int64_t i = 0; i < want.size(); ++i) {
    const double distance = std::abs(got[static_cast<size_t>(i)] - Get(want, i));
    error = std::isnan(distance) ? INFINITY : std::max(error, distance);
    largest = std::max(largest, std::abs(Get(want, i)));
  }
  return largest == 0 ? error : error / largest;
}

bool Same(const Results& a, const Results& b) {
  const auto same = [](const std::vector<double>& x, const std::vector<double>& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * 8) == 0;
  };
  return same(a.loss, b.loss) && same(a.per_token, b.per_token) && same(a.logprobs, b.logprobs) &&
         same(a.entropies, b.entropies) && same(a.lse, b.lse) && same(a.d_logits, b.d_logits);
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
  CHECK(ErrorOf(got.loss, want[0]) <= 2e-6);
  CHECK(ErrorOf(got.per_token, want[1]) <= 2e-6);
  CHECK(ErrorOf(got.logprobs, want[2]) <= 2e-6);
  CHECK(ErrorOf(got.entropies, want[3]) <= 2e-6);
  CHECK(ErrorOf(got.lse, want[4]) <= 2e-6);
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  CHECK(ErrorOf(got.d_logits, ReferenceOutputs(b)[0]) <= 4e-6 + unit);
  CHECK(got.bad_weights[0] == 0);
  CHECK(got.found[0] == 0);
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
  CHECK(got.bad_weights[0] == 0);
  CHECK(got.found[0] == 0);
  for (int64_t v = 0; v < 300; ++v) CHECK(got.d_logits[static_cast<size_t>(3 * 300 + v)] == 0);
}

TEST_CASE("CUDA cross entropy: bad weights are counted, and nothing that counts is a loss of 0") {
  Forward f = MakeForward(DType::kF32, 12, 10, true, 4);
  const Backward b = MakeBackward(f);
  f.tokens.weights.data<float>()[5] = -1;
  f.tokens.weights.data<float>()[7] = INFINITY;
  const Results bad = Emulate<float>(f, b);
  CHECK(bad.bad_weights == std::vector<double>{2, 5});
  std::fill_n(f.tokens.loss_mask.data<uint8_t>(), 12, uint8_t{0});
  const Results none = Emulate<float>(f, b);
  CHECK(none.loss[0] == 0);
  CHECK(none.bad_weights[0] == 0);
  for (double gradient : none.d_logits) CHECK(gradient == 0);
}

}  // namespace
}  // namespace varlen::cross_entropy::testing
