#include <cmath>
#include <cstring>
#include <string>
#include <vector>

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
  op.head.bias = Random(dtype, {vocab}, seed + 2, 0.5);
  op.tokens.loss_mask = mask;
  op.tokens.weights = FromValues(DType::kF32, {tokens}, weights);
  op.options = {0.75f, 3.0f, 1.25f, 0.125f, 0.0625f, 0.5, seed % 2 == 0};
  return op;
}

Backward MakeBackward(const Forward& forward) {
  const int64_t tokens = forward.head.total_tokens();
  Backward op;
  const std::vector<Tensor> outputs = ReferenceOutputs(forward);
  op.upstream.d_loss = FromValues(DType::kF32, {}, {1.5});
  op.upstream.d_per_token = Random(DType::kF32, {tokens}, 11);
  op.upstream.d_logprobs = Random(DType::kF32, {tokens}, 12);
  op.upstream.d_entropies = Random(DType::kF32, {tokens}, 13);
  op.upstream.entropies = outputs[3];
  op.upstream.lse = outputs[4];
  op.head = forward.head;
  op.tokens = forward.tokens;
  op.options = forward.options;
  return op;
}

// Loss, perToken, logprobs, entropies, lse, dHidden, dWeight, dBias.
using Results = std::vector<std::vector<double>>;

template <class Values>
std::vector<double> Widen(const Values& values) {
  std::vector<double> wide;
  for (const auto& value : values) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
      wide.push_back(value);
    } else {
      wide.push_back(static_cast<float>(value));
    }
  }
  return wide;
}

template <class T>
Results Emulate(const Forward& f, const Backward& b, const EmulatedRun& run = {}) {
  const int64_t tokens = f.head.total_tokens(), vocab = f.head.vocab_size();
  const auto floats = [&](const Tensor& tensor) -> std::vector<float> {
    if (!tensor) return {};
    return {tensor.data<float>(), tensor.data<float>() + tensor.size()};
  };
  EmulatedHead<T> head(f.head, f.tokens.target_ids, f.options.shape(), run);
  const simt::GlobalArray<uint8_t> mask(
      f.tokens.loss_mask ? f.tokens.loss_mask.data<uint8_t>() : nullptr,
      f.tokens.loss_mask ? tokens : 0);
  const simt::GlobalArray<float> weights(floats(f.tokens.weights));
  const uint8_t* mask_at = mask.size() > 0 ? mask.data() : nullptr;
  const float* weights_at = weights.size() > 0 ? weights.data() : nullptr;
  const simt::GlobalArray<float> d_loss(floats(b.upstream.d_loss)),
      d_per_token(floats(b.upstream.d_per_token)), d_logprobs(floats(b.upstream.d_logprobs)),
      d_entropies(floats(b.upstream.d_entropies));
  const simt::GlobalArray<double> losses(tokens), lse(tokens), factor(1), bad(2);
  const simt::GlobalArray<float> loss(1), per_token(tokens), logprobs(tokens), entropies(tokens);
  const DeviceCrossEntropy options{f.options.label_smoothing, f.options.z_loss, f.options.scale,
                                   f.options.normalize};
  CHECK(head.Statistics({mask_at, weights_at},
                        CrossEntropySink{options, losses.data(), per_token.data(), logprobs.data(),
                                         entropies.data(), lse.data()}) == "");
  CHECK(head.template Launch<CrossEntropyTotals>(
            1, {options, mask_at, weights_at, losses.data(), tokens, factor.data(), loss.data(),
                bad.data()}) == "");
  CHECK(bad[0] == 0);
  // The backward pass makes its own factor.
  factor[0] = NAN;
  CHECK(head.template Launch<CrossEntropyTotals>(1, {options, mask_at, weights_at, nullptr, tokens,
                                                     factor.data(), nullptr, nullptr}) == "");
  const CrossEntropySource source{options,
                                  mask_at,
                                  weights_at,
                                  factor.data(),
                                  d_loss.data(),
                                  d_per_token.data(),
                                  d_logprobs.data(),
                                  d_entropies.data(),
                                  lse.data(),
                                  entropies.data(),
                                  vocab};
  CHECK(head.Gradients(source, lse.data()) == "");
  return {Widen(loss), Widen(per_token),       Widen(logprobs),        Widen(entropies),
          Widen(lse),  Widen(head.d_hidden()), Widen(head.d_weight()), Widen(head.d_bias())};
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

bool SameBits(const Results& a, const Results& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size()) return false;
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(double)) != 0) return false;
  }
  return true;
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
