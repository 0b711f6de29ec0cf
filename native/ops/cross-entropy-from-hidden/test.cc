#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden::testing {
namespace {
using namespace varlen::testing;

Tensor Mask(const std::vector<int>& bits) {
  Tensor mask = Tensor::Empty(DType::kU8, {static_cast<int64_t>(bits.size())});
  for (size_t i = 0; i < bits.size(); ++i) mask.data<uint8_t>()[i] = static_cast<uint8_t>(bits[i]);
  return mask;
}

struct Shape {
  int64_t tokens, size, vocab;
};

// Every option at once, or none.
Forward MakeForward(DType dtype, const Shape& shape, bool options) {
  Forward op;
  const double scale = 1 / std::sqrt(static_cast<double>(shape.size));
  op.head.hidden = Random(dtype, {shape.tokens, shape.size}, 1);
  op.head.weight = Random(dtype, {shape.vocab, shape.size}, 2, scale);
  if (options) op.head.bias = Random(dtype, {shape.vocab}, 3, 0.5);
  std::vector<int32_t> targets;
  std::vector<int> mask;
  std::vector<double> weights;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    targets.push_back(static_cast<int32_t>((t * 7919 + 3) % shape.vocab));
    mask.push_back(t % 5 == 3 ? 0 : 1);
    weights.push_back(t % 7 == 2 ? 0 : 0.25 * static_cast<double>(t % 4 + 1));
  }
  op.tokens.target_ids = Host(targets);
  if (!options) return op;
  op.tokens.loss_mask = Mask(mask);
  op.tokens.weights = FromValues(DType::kF32, {shape.tokens}, weights);
  op.options = {0.75f, 3.0f, 1.25f, 0.125f, 0.0625f, 0.5, false};
  return op;
}

Backward MakeBackward(const Forward& forward, int64_t tokens) {
  Backward op;
  const std::vector<Tensor> outputs = Outputs(forward);
  op.upstream.d_loss = FromValues(DType::kF32, {}, {1.5});
  op.upstream.d_per_token = Random(DType::kF32, {tokens}, 11);
  op.upstream.d_logprobs = Random(DType::kF32, {tokens}, 12);
  op.upstream.d_entropies = Random(DType::kF32, {tokens}, 13);
  op.upstream.entropies = outputs[3];
  op.upstream.lse = outputs[4];
  op.head = forward.head;
  op.gradients.want_bias = true;
  op.tokens = forward.tokens;
  op.options = forward.options;
  return op;
}

TEST_CASE(
    "crossEntropyFromHidden: both passes agree with the reference, with the same bits on any "
    "threads") {
  for (DType dtype : kStorageTypes) {
    for (const Shape& shape :
         {Shape{1, 1, 1}, Shape{5, 7, 33}, Shape{130, 45, 515}, Shape{3, 600, 20}}) {
      for (bool options : {false, true}) {
        const Forward forward = MakeForward(dtype, shape, options);
        INFO(NameOf(dtype) << " tokens " << shape.tokens << " vocab " << shape.vocab);
        CHECK(Inaccuracy(forward, 2e-6) == "");
        CHECK(Inaccuracy(MakeBackward(forward, shape.tokens), 4e-6) == "");
      }
    }
  }
}

TEST_CASE("vocabularyStatistics: agrees with the reference wherever the target's word is") {
  for (DType dtype : kStorageTypes) {
    for (const Shape& shape : {Shape{1, 1, 1}, Shape{130, 45, 515}}) {
      for (int64_t first_word : {0, 3, 400}) {
        const Forward forward = MakeForward(dtype, shape, true);
        Statistics op;
        op.head = forward.head;
        op.tokens = forward.tokens;
        op.shard = {first_word, shape.vocab + 400};
        op.temperature = 0.75f;
        op.softcap = 3;
        op.logit_scale = 1.25f;
        INFO(NameOf(dtype) << " vocab " << shape.vocab << " first word " << first_word);
        CHECK(Inaccuracy(op, 2e-6) == "");
      }
    }
  }
}

TEST_CASE("crossEntropyFromHidden: a shard that leaves the vocabulary is refused at the call") {
  Forward op = MakeForward(DType::kF32, {4, 3, 5}, false);
  const auto code = [&](VocabularyShard shard) {
    op.shard = shard;
    return op.Validate().code;
  };
  CHECK(code({0, 0}) == Code::kOk);
  CHECK(code({3, 8}) == Code::kOk);
  CHECK(code({4, 8}) == Code::kRange);
  CHECK(code({-1, 8}) == Code::kRange);
  CHECK(code({1, 0}) == Code::kRange);
  CHECK(code({0, int64_t{1} << 31}) == Code::kRange);
  op.head.hidden.device.kind = DeviceKind::kCuda;
  CHECK(code({3, 8}) == Code::kUnsupported);
}

TEST_CASE("crossEntropyFromHidden: the reference's gradient is the difference of its loss") {
  const Shape shape{4, 3, 5};
  const Forward forward = MakeForward(DType::kF64, shape, true);
  Backward backward = MakeBackward(MakeForward(DType::kF32, shape, true), 4);
  backward.head = forward.head;
  const std::vector<Tensor> gradients = ReferenceOutputs(backward);
  // The loss whose gradient it is: every output with its upstream weight.
  const auto total = [&](const Forward& op) {
    const std::vector<Tensor> out = ReferenceOutputs(op);
    double sum = 1.5 * Get(out[0], 0);
    for (int64_t t = 0; t < 4; ++t) {
      sum += Get(out[1], t) * Get(backward.upstream.d_per_token, t) +
             Get(out[2], t) * Get(backward.upstream.d_logprobs, t) +
             Get(out[3], t) * Get(backward.upstream.d_entropies, t);
    }
    return sum;
  };
  const Tensor inputs[] = {forward.head.hidden, forward.head.weight, forward.head.bias};
  for (size_t n = 0; n < std::size(inputs); ++n) {
    for (int64_t i = 0; i < inputs[n].size(); ++i) {
      const double at = Get(inputs[n], i), step = 1e-5;
      Set(inputs[n], i, at + step);
      const double above = total(forward);
      Set(inputs[n], i, at - step);
      const double below = total(forward);
      Set(inputs[n], i, at);
      INFO("input " << n << " element " << i);
      CHECK(std::abs((above - below) / (2 * step) - Get(gradients[n], i)) < 1e-8);
    }
  }
}

TEST_CASE("crossEntropyFromHidden: rows that do not count are not read") {
  for (bool weighted : {false, true}) {
    const Shape shape{9, 3, 40};
    Forward clean = MakeForward(DType::kF32, shape, false);
    Forward dirty = MakeForward(DType::kF32, shape, false);
    std::vector<int32_t> targets(dirty.tokens.target_ids.data(),
                                 dirty.tokens.target_ids.data() + 9);
    targets[4] = -100;
    dirty.tokens.target_ids = Host(targets);
    for (Forward* op : {&clean, &dirty}) {
      if (weighted) {
        op->tokens.weights = FromValues(DType::kF32, {9}, {1, 1, 1, 1, 0, 1, 1, 1, 1});
      } else {
        op->tokens.loss_mask = Mask({1, 1, 1, 1, 0, 1, 1, 1, 1});
      }
    }
    const int64_t width = dirty.head.hidden.shape[1];
    for (int64_t i = 0; i < width; ++i) Set(dirty.head.hidden, 4 * width + i, NAN);
    CHECK(BitDifference(Outputs(clean), Outputs(dirty)) == "");
    CHECK(BitDifference(Outputs(MakeBackward(clean, 9)), Outputs(MakeBackward(dirty, 9))) == "");
  }
}

}  // namespace
}  // namespace varlen::cross_entropy_from_hidden::testing
