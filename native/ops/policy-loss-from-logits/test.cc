#include <cmath>
#include <limits>

#include "core/loss/length_hash.h"
#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

// The loss from logits against its reference, whose gradients are differences, and what must hold
// of any softmax.
namespace varlen::policy_loss_from_logits {
namespace {

using loss::Clip;
using loss::Kl;
using loss::Level;

struct Shape {
  std::vector<int32_t> lengths;
  int64_t vocab_size;
  DType dtype = DType::kF32;
  double size = 1.5;  // of the logits
};

int64_t Tokens(const Shape& shape) {
  int64_t tokens = 0;
  for (int32_t length : shape.lengths) tokens += length;
  return tokens;
}

// PPO with a k3 penalty and an entropy bonus at a temperature; every fifth token is masked.
Forward Make(const Shape& shape, uint32_t seed) {
  const int64_t tokens = Tokens(shape);
  Forward p;
  p.logits = testing::Random(shape.dtype, {tokens, shape.vocab_size}, seed, shape.size);
  std::vector<int32_t> targets, cu{0};
  p.batch.old_logprobs = testing::Random(DType::kF32, {tokens}, seed + 1, 0.5);
  p.batch.ref_logprobs = testing::Random(DType::kF32, {tokens}, seed + 2, 0.5);
  p.batch.loss_mask = Tensor::Empty(DType::kU8, {tokens});
  // A token without a weight, or outside the KL mask, earns no entropy bonus.
  p.batch.kl_mask = Tensor::Empty(DType::kU8, {tokens});
  std::vector<float> weights;
  for (int64_t t = 0; t < tokens; ++t) {
    p.batch.kl_mask.data<uint8_t>()[t] = t % 7 != 3;
    weights.push_back(t % 6 == 2 ? 0.0f : 1.5f);
    targets.push_back(static_cast<int32_t>((t * 31 + seed) % shape.vocab_size));
    const double typical = -std::log(static_cast<double>(shape.vocab_size)) - 2;
    p.batch.old_logprobs.data<float>()[t] += static_cast<float>(typical);
    p.batch.ref_logprobs.data<float>()[t] += static_cast<float>(typical);
    p.batch.loss_mask.data<uint8_t>()[t] = t % 5 != 4;
  }
  p.target_ids = testing::Host(targets);
  p.batch.token_weights = testing::Host(weights);
  std::vector<float> advantages, scale;
  loss::LengthHash hash(static_cast<int64_t>(shape.lengths.size()));
  int64_t t = 0;
  for (int32_t length : shape.lengths) {
    cu.push_back(cu.back() + length);
    advantages.push_back(cu.size() % 2 == 0 ? 0.7f : -0.4f);
    scale.push_back(0.1f * static_cast<float>(cu.size()));
    int64_t active = 0;
    for (int32_t i = 0; i < length; ++i) active += t++ % 5 != 4;
    hash.Add(active);
  }
  p.batch.cu_seqlens = testing::Host(cu);
  p.batch.advantages = testing::Host(advantages);
  p.batch.advantages_per = 1;
  p.batch.seq_scale = testing::Host(scale);
  p.config.ratio_level = static_cast<int64_t>(Level::kToken);
  p.config.clip_kind = static_cast<int64_t>(Clip::kPpo);
  p.config.clip[0] = p.config.clip[1] = 2;  // open: a kink spoils differences
  p.config.clip[0] = 0.9;
  p.config.kl_kind = static_cast<int64_t>(Kl::kK3);
  p.config.kl_coef = 0.1;
  p.config.entropy_coef = 0.3;
  p.config.entropy_scale = 0.05;
  p.config.hash_low = hash.low();
  p.config.hash_high = hash.high();
  p.temperature = 0.8;
  p.want_squares = true;
  return p;
}

enum Output { kLoss, kDLogprobs, kSums, kLogprobs, kLse, kEntropies, kDEntropies, kSquares };

Backward BackwardOf(const Forward& p, const std::vector<Tensor>& results, double d_loss = 1) {
  Backward b;
  b.d_loss = testing::FromValues(DType::kF32, {1}, {d_loss});
  b.d_loss.rank = 0;
  b.logits = p.logits;
  b.target_ids = p.target_ids;
  b.d_logprobs = results[kDLogprobs];
  b.lse = results[kLse];
  if (p.uses_entropies()) {  // else they are not among the results
    b.entropies = results[kEntropies];
    b.d_entropies = results[kDEntropies];
  }
  b.temperature = p.temperature;
  return b;
}

void CheckDifferences(Forward p) {
  constexpr double kStep = 1e-5;
  p.logits = testing::CopyAs(p.logits, DType::kF64);
  const Tensor gradient =
      testing::ReferenceOutputs(BackwardOf(p, testing::ReferenceOutputs(p), 1.5))[0];
  const auto loss = [&] { return testing::Get(testing::ReferenceOutputs(p)[kLoss], 0); };
  for (int64_t i = 0; i < p.logits.size(); ++i) {
    double& logit = p.logits.data<double>()[i];
    const double before = logit;
    logit = before + kStep;
    const double above = loss();
    logit = before - kStep;
    const double below = loss();
    logit = before;
    const double want = 1.5 * (above - below) / (2 * kStep);
    CHECK(std::abs(testing::Get(gradient, i) - want) <= 1e-9);
  }
}

// Rules and penalties that stop no gradient: those that do are compared by policy-loss/test.cc,
// whose derivatives by log-probabilities come in here as they are.
TEST_CASE("Gradients of the reference are differences of its loss, with and without an entropy") {
  for (double entropy_coef : {0.0, 0.3, -0.2}) {
    for (Level level : {Level::kNone, Level::kToken, Level::kSequence}) {
      for (Kl kl : {Kl::kNone, Kl::kK1, Kl::kAbs, Kl::kK2, Kl::kK3}) {
        INFO("entropy " << entropy_coef << " level " << static_cast<int>(level) << " kl "
                        << static_cast<int>(kl));
        Forward p = Make({{3, 4}, 5}, 3);
        p.config.ratio_level = static_cast<int64_t>(level);
        if (level == Level::kNone) p.config.clip_kind = static_cast<int64_t>(Clip::kNone);
        p.config.kl_kind = static_cast<int64_t>(kl);
        p.config.kl_coef = kl == Kl::kNone ? 0 : 0.1;
        p.config.entropy_coef = entropy_coef;
        CheckDifferences(p);
      }
    }
  }
}

TEST_CASE("The CPU agrees with the reference for vocabularies of any width and all dtypes") {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int64_t vocab_size : {1, 7, 16, 33, 1000}) {
      CAPTURE(NameOf(dtype));
      CAPTURE(vocab_size);
      const Forward p = Make({{9, 1, 0, 12}, vocab_size, dtype}, 7);
      Status status;
      const std::vector<Tensor> fast = testing::Outputs(p, &status);
      REQUIRE_MESSAGE(status.ok(), status.message);
      const std::vector<Tensor> reference = testing::ReferenceOutputs(p);
      for (int i : {kLoss, kDLogprobs, kLogprobs, kLse, kEntropies, kDEntropies, kSquares}) {
        CAPTURE(i);
        CHECK(testing::Difference(fast[i], reference[i], 3e-6) == "");
      }
      const Tensor got = testing::Outputs(BackwardOf(p, fast, 0.5))[0];
      const Tensor want = testing::ReferenceOutputs(BackwardOf(p, reference, 0.5))[0];
      CHECK(testing::Difference(got, want, 2e-6) == "");
    }
  }
}

TEST_CASE("Gradients of a row add up to zero, and masked rows are zero and never read") {
  Forward p = Make({{9, 12}, 77}, 9);
  const std::vector<Tensor> clean = testing::Outputs(p);
  const Tensor clean_gradient = testing::Outputs(BackwardOf(p, clean))[0];
  std::vector<int32_t> targets(p.target_ids.data(), p.target_ids.data() + 21);
  for (int64_t t = 0; t < 21; ++t) {
    double sum = 0, sizes = 0;
    for (int64_t v = 0; v < 77; ++v) {
      sum += testing::Get(clean_gradient, t * 77 + v);
      sizes += std::abs(testing::Get(clean_gradient, t * 77 + v));
    }
    // The probabilities' relative error in float32: exp of a log-probability rounded near -10.
    CHECK(std::abs(sum) <= 2e-6 * sizes);
    if (t % 5 != 4) continue;
    targets[t] = -12345;
    for (int64_t v = 0; v < 77; ++v) {
      CHECK(testing::Get(clean_gradient, t * 77 + v) == 0);
      p.logits.data<float>()[t * 77 + v] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  p.target_ids = testing::Host(targets);
  Status status;
  const std::vector<Tensor> dirty = testing::Outputs(p, &status);
  REQUIRE_MESSAGE(status.ok(), status.message);
  const auto same = [](const Tensor& a, const Tensor& b) {
    return std::memcmp(a.storage->data(), b.storage->data(),
                       static_cast<size_t>(a.size() * SizeOf(a.dtype))) == 0;
  };
  for (int i : {kLoss, kDLogprobs, kSums, kLogprobs, kEntropies}) CHECK(same(dirty[i], clean[i]));
  CHECK(same(testing::Outputs(BackwardOf(p, dirty))[0], clean_gradient));
}

TEST_CASE("A constant added to the logits of a row changes nothing, a very negative one neither") {
  for (float shift : {8.0f, -1024.0f, -65536.0f}) {
    Forward p = Make({{6}, 9}, 11);
    // Multiples of 2^-6 stay exact under these shifts.
    for (int64_t i = 0; i < p.logits.size(); ++i) {
      float& logit = p.logits.data<float>()[i];
      logit = std::round(logit * 64) / 64;
    }
    p.temperature = 1;
    const std::vector<Tensor> before = testing::Outputs(p);
    for (int64_t i = 0; i < p.logits.size(); ++i) p.logits.data<float>()[i] += shift;
    const std::vector<Tensor> after = testing::Outputs(p);
    CAPTURE(shift);
    CHECK(testing::Difference(after[kLogprobs], before[kLogprobs], 1e-6) == "");
    CHECK(testing::Difference(after[kEntropies], before[kEntropies], 1e-6) == "");
    const Tensor a = testing::Outputs(BackwardOf(p, after))[0];
    CHECK(std::isfinite(testing::Get(a, 0)));
  }
}

TEST_CASE("A gradient in the place of the logits has the bits of one beside them") {
  const Forward p = Make({{9, 12}, 77}, 13);
  const std::vector<Tensor> results = testing::Outputs(p);
  const Backward beside = BackwardOf(p, results);
  Backward place = beside;
  place.overwrite = {p.logits};
  place.logits = {};
  REQUIRE(place.Validate().ok());
  const Tensor want = testing::Outputs(beside)[0], got = testing::Outputs(place)[0];
  CHECK(testing::Difference(got, want, 0) == "");
}

TEST_CASE("A target outside the vocabulary is named, on active rows alone") {
  Forward p = Make({{9}, 7}, 15);
  std::vector<int32_t> targets(9, 0);
  targets[4] = 99;  // masked
  p.target_ids = testing::Host(targets);
  Status status;
  (void)testing::Outputs(p, &status);
  CHECK(status.ok());
  for (int32_t wrong : {-1, 7}) {
    targets[6] = wrong;
    p.target_ids = testing::Host(targets);
    CHECK(p.Validate().ok());  // which rows count is known in the stream
    (void)testing::Outputs(p, &status);
    REQUIRE(status.code == Code::kIndex);
    CHECK(status.details[0].second == 6);
  }
  p.batch.loss_mask = {};
  CHECK(p.Validate().code == Code::kIndex);
}

TEST_CASE("A temperature that is not positive is refused") {
  Forward p = Make({{9}, 7}, 16);
  for (double wrong : {0.0, -1.0, std::numeric_limits<double>::infinity()}) {
    p.temperature = wrong;
    CHECK(p.Validate().code == Code::kRange);
  }
}

TEST_CASE("A row without finite logits is not finite, or dropped without a gradient") {
  Forward p = Make({{9}, 7}, 17);
  for (int64_t v = 0; v < 7; ++v) {
    p.logits.data<float>()[2 * 7 + v] = -std::numeric_limits<float>::infinity();
  }
  Status status;
  (void)testing::Outputs(p, &status);
  CHECK(status.code == Code::kNonFinite);
  p.config.non_finite = static_cast<int64_t>(loss::NonFinite::kDrop);
  const std::vector<Tensor> results = testing::Outputs(p, &status);
  CHECK(status.ok());
  const Tensor gradient = testing::Outputs(BackwardOf(p, results))[0];
  for (int64_t i = 0; i < gradient.size(); ++i) CHECK(std::isfinite(testing::Get(gradient, i)));
  for (int64_t v = 0; v < 7; ++v) CHECK(testing::Get(gradient, 2 * 7 + v) == 0);
}

}  // namespace
}  // namespace varlen::policy_loss_from_logits
