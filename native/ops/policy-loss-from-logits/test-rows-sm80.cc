#include <cmath>
#include <limits>

#include "core/emulated.h"
#include "core/loss/emulated-loss.h"
#include "core/op_test.h"
#include "core/row-softmax-device.h"
#include "doctest/doctest.h"
#include "ops/policy-loss-from-logits/kernels.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"

// The row kernels, run by the host emulator, against the float64 reference: first with given
// gradients of the loss, at the end with the loss between them.
namespace varlen::policy_loss_from_logits {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Shape {
  int64_t rows, vocab_size;
  int64_t stride = 0;  // 0: vocab_size
  double size = 1.5;   // of the logits
};
struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
  bool vector_access = true;
  bool in_place = false;
};

struct Rows {
  std::vector<double> logits, lse, logprobs, entropies, squares, d_logits;
  std::vector<uint8_t> mask;
  std::vector<int32_t> targets;
  std::vector<float> d_logprobs, d_entropies;
  double found[2];
};

constexpr float kTemperature = 0.8f, kDLoss = 0.5f;

// Logits rounded to T, every fifth row masked; rows of gradients with and without an entropy part.
template <class T>
Rows Make(const Shape& shape, uint32_t seed) {
  Rows r;
  const Tensor logits =
      testing::Random(DTypeOf<T>::value, {shape.rows, shape.vocab_size}, seed, shape.size);
  for (int64_t i = 0; i < logits.size(); ++i) r.logits.push_back(testing::Get(logits, i));
  for (int64_t t = 0; t < shape.rows; ++t) {
    r.mask.push_back(t % 5 != 4);
    r.targets.push_back(static_cast<int32_t>((t * 31 + seed) % shape.vocab_size));
    r.d_logprobs.push_back(r.mask.back() ? std::sin(static_cast<float>(t + 1)) : 0.0f);
    r.d_entropies.push_back(r.mask.back() && t % 2 == 0 ? -0.03f : 0.0f);
  }
  return r;
}

// The formulas of the op's header, in float64.
void Reference(const Shape& shape, Rows& r) {
  const int64_t n = shape.vocab_size;
  r.lse.assign(shape.rows, 0), r.logprobs = r.entropies = r.squares = r.lse;
  r.d_logits.assign(r.logits.size(), 0);
  for (int64_t t = 0; t < shape.rows; ++t) {
    if (r.mask[t] == 0) continue;
    const double* u = r.logits.data() + t * n;
    double max = u[0], sum = 0;
    for (int64_t v = 0; v < n; ++v) max = std::max(max, u[v]);
    for (int64_t v = 0; v < n; ++v) sum += std::exp((u[v] - max) / kTemperature);
    r.lse[t] = max / kTemperature + std::log(sum);
    r.logprobs[t] = u[r.targets[t]] / kTemperature - r.lse[t];
    for (int64_t v = 0; v < n; ++v) {
      const double log_p = u[v] / kTemperature - r.lse[t], p = std::exp(log_p);
      if (p > 0) r.entropies[t] -= p * log_p;
      r.squares[t] += p * p;
    }
    for (int64_t v = 0; v < n; ++v) {
      const double log_p = u[v] / kTemperature - r.lse[t], p = std::exp(log_p);
      double gradient = double{r.d_logprobs[t]} * ((v == r.targets[t]) - p);
      if (p > 0) gradient -= double{r.d_entropies[t]} * p * (log_p + r.entropies[t]);
      r.d_logits[t * n + v] = kDLoss / double{kTemperature} * gradient;
    }
  }
}

template <class T>
Rows Emulate(const Shape& shape, const Rows& given, const Run& run = {}) {
  const int64_t stride = shape.stride == 0 ? shape.vocab_size : shape.stride;
  const int64_t rows = shape.rows, n = shape.vocab_size;
  // The gaps between rows stay NaN.
  const simt::GlobalArray<T> logits(rows * stride), beside(rows * stride);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t v = 0; v < n; ++v) {
      logits[t * stride + v] = T(static_cast<float>(given.logits[t * n + v]));
    }
  }
  const simt::GlobalArray<uint8_t> mask(given.mask);
  const simt::GlobalArray<int32_t> targets(given.targets);
  const simt::GlobalArray<double> lse(rows), found(2);
  const simt::GlobalArray<float> logprobs(rows), entropies(rows), squares(rows);
  const bool aligned = run.vector_access && stride * sizeof(T) % 16 == 0;
  const DeviceLogits<T> in{logits.data(), stride, mask.data(),          nullptr, targets.data(),
                           rows,          n,      {kTemperature, 0, 1}, aligned};
  const auto check = [](const simt::LaunchResult& result) {
    CHECK(std::string(result.message()) == "");
  };
  check(simt::Launch<DeviceTargetCheck>(
      1, DeviceTargetCheck::kSharedBytes,
      {mask.data(), nullptr, targets.data(), rows, n, found.data()}, {.seed = run.seed}));
  using Statistics = LossRows<T>;
  check(simt::Launch<Statistics>(
      run.blocks, Statistics::kSharedBytes,
      {in, {lse.data(), logprobs.data(), entropies.data(), squares.data()}}, {.seed = run.seed}));
  const simt::GlobalArray<float> d_loss(std::vector<float>{kDLoss}), d_logprobs(given.d_logprobs),
      d_entropies(given.d_entropies);
  const simt::GlobalArray<T>& to = run.in_place ? logits : beside;
  using Gradients = RowGradients<T>;
  check(simt::Launch<Gradients>(
      run.blocks, Gradients::kSharedBytes,
      {in,
       lse.data(),
       {d_loss.data(), d_logprobs.data(), d_entropies.data(), entropies.data()},
       to.data(),
       stride,
       aligned},
      {.seed = run.seed}));
  Rows r = given;
  r.lse.assign(lse.begin(), lse.end());
  r.logprobs.assign(logprobs.begin(), logprobs.end());
  r.entropies.assign(entropies.begin(), entropies.end());
  r.squares.assign(squares.begin(), squares.end());
  r.d_logits.clear();
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t v = 0; v < n; ++v) {
      r.d_logits.push_back(static_cast<float>(to[t * stride + v]));
    }
    for (int64_t v = n; v < stride; ++v) {
      REQUIRE(std::isnan(static_cast<float>(to[t * stride + v])));  // gaps are not written
    }
  }
  r.found[0] = found[0], r.found[1] = found[1];
  return r;
}

bool SameBits(const Rows& a, const Rows& b) {
  return testing::SameBits({a.lse, a.logprobs, a.entropies, a.squares, a.d_logits},
                           {b.lse, b.logprobs, b.entropies, b.squares, b.d_logits});
}

template <class T>
void CheckShape(const Shape& shape, uint32_t seed) {
  CAPTURE(shape.vocab_size);
  CAPTURE(NameOf(DTypeOf<T>::value));
  Rows want = Make<T>(shape, seed);
  Reference(shape, want);
  const Rows got = Emulate<T>(shape, want, {.seed = seed});
  CHECK(testing::ErrorOf(got.lse, want.lse) <= 1e-6);
  CHECK(testing::ErrorOf(got.logprobs, want.logprobs) <= 1e-6);
  CHECK(testing::ErrorOf(got.entropies, want.entropies) <= 2e-6);
  CHECK(testing::ErrorOf(got.squares, want.squares) <= 2e-6);
  // Half a unit of the stored dtype on top.
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  CHECK(testing::ErrorOf(got.d_logits, want.d_logits) <= 2e-6 + unit);
  CHECK(got.found[0] == 0);
}

TEST_CASE("CUDA logits rows: vocabularies of any width agree with the reference in all dtypes") {
  uint32_t seed = 7;
  for (int64_t vocab_size : {1, 7, 8, 33, 1000, 2048, 4099}) {
    const Shape shape{vocab_size > 1000 ? 3 : 7, vocab_size, seed % 2 == 0 ? vocab_size + 5 : 0};
    CheckShape<float>(shape, ++seed);
    CheckShape<bfloat16>(shape, seed);
    CheckShape<half>(shape, seed);
  }
}

TEST_CASE("CUDA logits rows: grids, orders, scalar access and in-place writes give the same bits") {
  const Shape shape{6, 2072, 0};
  const auto check = [&]<class T>() {
    const Rows given = Make<T>(shape, 3);
    const Rows one = Emulate<T>(shape, given, {.seed = 0, .blocks = 1});
    for (uint64_t seed = 1; seed < 6; ++seed) {
      const Run run{seed, static_cast<int64_t>(1 + seed), seed % 2 == 0, seed % 3 == 0};
      CHECK(SameBits(Emulate<T>(shape, given, run), one));
    }
  };
  check.operator()<float>();
  check.operator()<bfloat16>();
}

TEST_CASE("CUDA logits rows: masked rows are zero and what stands in them reaches no bit") {
  const Shape shape{11, 77};
  const Rows clean = Make<float>(shape, 9);
  Rows dirty = clean;
  for (int64_t t = 0; t < shape.rows; ++t) {
    if (clean.mask[t] != 0) continue;
    dirty.targets[t] = -12345;
    for (int64_t v = 0; v < 77; ++v) dirty.logits[t * 77 + v] = v % 2 == 0 ? kNaN : INFINITY;
  }
  const Rows a = Emulate<float>(shape, clean), b = Emulate<float>(shape, dirty);
  CHECK(SameBits(a, b));
  CHECK(b.found[0] == 0);
  for (int64_t v = 0; v < 77; ++v) CHECK(a.d_logits[4 * 77 + v] == 0);
  CHECK(a.lse[4] == 0);
}

TEST_CASE("CUDA logits rows: gradients of a row add up to zero") {
  const Shape shape{8, 300};
  const Rows got = Emulate<float>(shape, Make<float>(shape, 21));
  for (int64_t t = 0; t < shape.rows; ++t) {
    double sum = 0, sizes = 0;
    for (int64_t v = 0; v < 300; ++v) {
      sum += got.d_logits[t * 300 + v];
      sizes += std::abs(got.d_logits[t * 300 + v]);
    }
    CHECK(std::abs(sum) <= 2e-6 * sizes);
  }
}

TEST_CASE("CUDA logits rows: a shift of all logits and impossible tokens change nothing else") {
  const Shape shape{2, 40};
  Rows given = Make<float>(shape, 11);
  given.mask = {1, 1};
  for (double& logit : given.logits) logit = std::round(logit * 64) / 64;
  // 4096 / 0.8 and the logits stay exact to 2^-11 of a unit.
  Rows shifted = given;
  for (double& logit : shifted.logits) logit -= 4096;
  const Rows a = Emulate<float>(shape, given), b = Emulate<float>(shape, shifted);
  CHECK(testing::ErrorOf(b.logprobs, a.logprobs) <= 4e-4);
  for (double logprob : b.logprobs) CHECK(logprob <= 0);
  Rows impossible = given;
  for (int64_t v = 20; v < 30; ++v) impossible.logits[v] = -INFINITY;
  impossible.targets[0] = 3;
  const Rows got = Emulate<float>(shape, impossible);
  for (int64_t v = 0; v < 40; ++v) CHECK(std::isfinite(got.d_logits[v]));
  for (int64_t v = 20; v < 30; ++v) CHECK(got.d_logits[v] == 0);
  CHECK(std::isfinite(got.entropies[0]));
  for (int64_t v = 0; v < 40; ++v) impossible.logits[v] = -INFINITY;
  CHECK(std::isnan(Emulate<float>(shape, impossible).logprobs[0]));
}

TEST_CASE("CUDA logits rows: targets outside the vocabulary are counted on rows that count") {
  const Shape shape{1200, 3};
  Rows given = Make<float>(shape, 2);
  given.targets[4] = 99;  // masked
  given.targets[1101] = 3;
  given.targets[1111] = -1;
  const Rows got = Emulate<float>(shape, given, {.blocks = 5});
  CHECK(got.found[0] == 2);
  CHECK(got.found[1] == 1101);
  CHECK(std::isnan(got.logprobs[1101]));
}

// The reference of this file is the op's: both are transcriptions of its header.
TEST_CASE("CUDA logits rows: the row reference here is the op's") {
  const Shape shape{5, 9};
  Rows mine = Make<float>(shape, 5);
  Reference(shape, mine);
  Backward p;
  p.d_loss = testing::FromValues(DType::kF64, {1}, {kDLoss});
  p.logits = testing::FromValues(DType::kF64, {5, 9}, mine.logits);
  p.target_ids = testing::Host(mine.targets);
  p.d_logprobs = testing::FromValues(
      DType::kF64, {5}, std::vector<double>(mine.d_logprobs.begin(), mine.d_logprobs.end()));
  p.d_entropies = testing::FromValues(
      DType::kF64, {5}, std::vector<double>(mine.d_entropies.begin(), mine.d_entropies.end()));
  p.temperature = kTemperature;
  p.d_logits = Tensor::Empty(DType::kF64, {5, 9});
  REQUIRE(RunReference(p).ok());
  for (int64_t i = 0; i < 45; ++i) {
    CHECK(std::abs(testing::Get(p.d_logits, i) - mine.d_logits[i]) <= 1e-12);
  }
}

// Logits to loss to gradient with every kernel of the op, at each ratio level.
template <class T>
void CheckChain(loss::Level level, uint32_t seed) {
  const std::vector<int32_t> cu_values{0, 9, 10, 10, 22};
  const int64_t rows = 22, n = 45;
  Forward p;
  p.logits = testing::Random(DTypeOf<T>::value, {rows, n}, seed, 1.5);
  p.batch.old_logprobs = testing::Random(DType::kF32, {rows}, seed + 1, 0.5);
  p.batch.ref_logprobs = testing::Random(DType::kF32, {rows}, seed + 2, 0.5);
  p.batch.loss_mask = Tensor::Empty(DType::kU8, {rows});
  // A token without a weight, or outside the KL mask, earns no entropy bonus.
  p.batch.kl_mask = Tensor::Empty(DType::kU8, {rows});
  std::vector<float> weights;
  std::vector<int32_t> target_values;
  for (int64_t t = 0; t < rows; ++t) {
    target_values.push_back(static_cast<int32_t>((t * 31 + seed) % n));
    for (const Tensor& tensor : {p.batch.old_logprobs, p.batch.ref_logprobs}) {
      tensor.data<float>()[t] -= 5.5f;
    }
    p.batch.loss_mask.data<uint8_t>()[t] = t % 5 != 4;
    p.batch.kl_mask.data<uint8_t>()[t] = t % 7 != 3;
    weights.push_back(t % 6 == 2 ? 0.0f : 1.5f);
  }
  const std::vector<float> advantage_values{0.7f, -0.4f, 1.0f, 0.5f};
  const std::vector<float> scale_values{0.1f, 0.2f, 0.3f, 0.4f};
  p.target_ids = testing::Host(target_values);
  p.batch.cu_seqlens = testing::Host(cu_values);
  p.batch.advantages = testing::Host(advantage_values);
  p.batch.token_weights = testing::Host(weights);
  p.batch.advantages_per = 1;
  p.batch.seq_scale = testing::Host(scale_values);
  p.config.ratio_level = static_cast<int64_t>(level);
  p.config.clip_kind =
      static_cast<int64_t>(level == loss::Level::kNone ? loss::Clip::kNone : loss::Clip::kPpo);
  p.config.clip[0] = 0.9;
  p.config.clip[1] = 4;
  p.config.kl_kind = static_cast<int64_t>(loss::Kl::kK3);
  p.config.kl_coef = 0.1;
  p.config.entropy_coef = 0.3;
  p.config.entropy_scale = 0.05;
  p.temperature = kTemperature;
  p.want_squares = true;
  enum { kLoss, kDLogprobs, kSums, kLogprobs, kLse, kEntropies, kDEntropies, kSquares };
  const std::vector<Tensor> want = testing::ReferenceOutputs(p);
  Backward back;
  back.d_loss = testing::FromValues(DType::kF32, {1}, {kDLoss});
  back.d_loss.rank = 0;
  back.logits = p.logits;
  back.target_ids = p.target_ids;
  back.d_logprobs = want[kDLogprobs];
  back.lse = want[kLse];
  back.entropies = want[kEntropies];
  back.d_entropies = want[kDEntropies];
  back.temperature = p.temperature;
  const Tensor want_gradient = testing::ReferenceOutputs(back)[0];

  const simt::GlobalArray<T> logits(p.logits.template data<T>(), rows * n);
  const simt::GlobalArray<uint8_t> mask(p.batch.loss_mask.template data<uint8_t>(), rows);
  const simt::GlobalArray<int32_t> targets(target_values);
  const simt::GlobalArray<double> lse(rows);
  const simt::GlobalArray<float> logprobs(rows), entropies(rows), squares(rows);
  const auto check = [](const simt::LaunchResult& result) {
    CHECK(std::string(result.message()) == "");
  };

  const DeviceLogits<T> in{logits.data(), n, mask.data(),          nullptr, targets.data(),
                           rows,          n, {kTemperature, 0, 1}, false};
  check(simt::Launch<LossRows<T>>(
      3, LossRows<T>::kSharedBytes,
      {in, {lse.data(), logprobs.data(), entropies.data(), squares.data()}}, {.seed = seed}));
  const testing::EmulatedLoss loss(p.batch, p.config, logprobs.data(), entropies.data(), rows,
                                   seed);
  const simt::GlobalArray<float> d_loss(std::vector<float>{kDLoss});
  check(simt::Launch<RowGradients<T>>(
      3, RowGradients<T>::kSharedBytes,
      {in,
       lse.data(),
       {d_loss.data(), loss.d_logprobs.data(), loss.d_entropies.data(), entropies.data()},
       logits.data(),
       n,
       false},
      {.seed = seed}));

  const auto error = [](const auto& got, const Tensor& wanted) {
    return testing::ErrorOf(testing::Widen(got), wanted);
  };
  CHECK(error(loss.total, want[kLoss]) <= 3e-6);
  CHECK(error(logprobs, want[kLogprobs]) <= 1e-6);
  CHECK(error(lse, want[kLse]) <= 1e-6);
  CHECK(error(entropies, want[kEntropies]) <= 2e-6);
  CHECK(error(squares, want[kSquares]) <= 2e-6);
  CHECK(error(loss.d_logprobs, want[kDLogprobs]) <= 3e-6);
  CHECK(error(loss.d_entropies, want[kDEntropies]) <= 1e-6);
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  CHECK(error(logits, want_gradient) <= 4e-6 + unit);
}

TEST_CASE("CUDA loss from logits: rows, loss and gradient in place agree with the reference") {
  uint32_t seed = 30;
  for (loss::Level level : {loss::Level::kNone, loss::Level::kToken, loss::Level::kSequence,
                            loss::Level::kSequenceToken}) {
    CAPTURE(static_cast<int>(level));
    CheckChain<float>(level, ++seed);
    CheckChain<bfloat16>(level, ++seed);
    CheckChain<half>(level, ++seed);
  }
}

}  // namespace
}  // namespace varlen::policy_loss_from_logits
