#include <cmath>
#include <string>
#include <vector>

#include "core/emulated.h"
#include "core/jsd-words-device.h"
#include "core/op_test.h"
#include "core/tile-product-device.h"
#include "doctest/doctest.h"
#include "ops/generalized-jsd/generalized-jsd.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::generalized_jsd::testing {
namespace {

using namespace varlen::testing;
using namespace varlen::jsd;

constexpr float kBetas[] = {0.0f, 0.1f, 0.5f, 0.9f, 1.0f};

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};

// With everything: mask, weights, ratios, a plan, activation and floor; or with nothing.
Forward MakeForward(DType student, DType teacher, int64_t rows, int64_t vocab, float beta,
                    bool options, uint32_t seed) {
  Forward op;
  op.student = Random(student, {rows, vocab}, seed, 2);
  op.teacher = Random(teacher, {rows, vocab}, seed + 1, 2);
  op.options.beta = beta;
  if (!options) return op;
  op.tokens.loss_mask = Tensor::Empty(DType::kU8, {rows});
  op.tokens.weights = Random(DType::kF32, {rows}, seed + 2);
  for (int64_t t = 0; t < rows; ++t) {
    op.tokens.loss_mask.data<uint8_t>()[t] = t % 4 != 3;
    float& weight = op.tokens.weights.data<float>()[t];
    weight = t % 4 == 3 ? NAN : t % 5 == 2 ? 0 : std::abs(weight);
  }
  op.tokens.logprobs = Random(DType::kF32, {rows}, seed + 3);
  op.tokens.old_logprobs = Random(DType::kF32, {rows}, seed + 4);
  op.tokens.is_clip = 2;
  const auto end = static_cast<int32_t>(rows);
  op.tokens.cu_seqlens = Host(std::vector<int32_t>{0, end / 3 * 2, end / 3 * 2, end});
  op.tokens.seq_scale = Host(std::vector<float>{0.1f, 0.7f, 0.3f});
  op.options = {beta, 2.0f, 5.0f, 1.5f, -6.0f, 4.0f};
  return op;
}

// Loss, perToken, coefficients, studentLse, teacherLse, inner, tokens, dStudent, bad weights.
using Results = std::vector<Doubles>;
constexpr size_t kNumOutputs = 7, kGradient = 7, kBad = 8;

Tensor DLoss() { return FromValues(DType::kF32, {}, {1.25}); }
Tensor DPerToken(const Forward& f) { return Random(DType::kF32, {f.student.shape[0]}, 77); }

template <class S, class T>
Results Emulate(const Forward& f, const Run& run = {}) {
  const int64_t rows = f.student.shape[0], vocab = f.student.shape[1];
  const auto student = Upload<S>(f.student);
  const auto teacher = Upload<T>(f.teacher);
  const auto mask = Upload<uint8_t>(f.tokens.loss_mask);
  const auto weights = Upload<float>(f.tokens.weights), logprobs = Upload<float>(f.tokens.logprobs),
             old = Upload<float>(f.tokens.old_logprobs), d_loss = Upload<float>(DLoss()),
             d_per_token = Upload<float>(DPerToken(f));
  const int64_t seqs = f.tokens.seq_scale ? f.tokens.seq_scale.size() : 0;
  const simt::GlobalArray<int32_t> cu(f.tokens.cu_seqlens ? f.tokens.cu_seqlens.data() : nullptr,
                                      f.tokens.cu_seqlens ? seqs + 1 : 0);
  const simt::GlobalArray<float> scale(f.tokens.seq_scale ? f.tokens.seq_scale.data() : nullptr,
                                       seqs);
  const simt::GlobalArray<float> loss(1), per_token(rows), coefficients(rows);
  const simt::GlobalArray<double> student_lse(rows), teacher_lse(rows), inner(rows), tokens(1),
      bad(2);
  const simt::GlobalArray<S> d_student(rows * vocab);
  const JsdOptions& o = f.options;
  const DeviceSides<S, T> in{student.data(),
                             teacher.data(),
                             vocab,
                             vocab,
                             Given(mask),
                             rows,
                             vocab,
                             DeviceOptionsOf(o.beta, o.temperature, o.softcap, o.logit_scale,
                                             o.teacher_floor, o.loss_scale),
                             AllowsVectors(student.data(), vocab, sizeof(S)),
                             AllowsVectors(teacher.data(), vocab, sizeof(T))};
  const auto launch = [&]<class Kernel>(int64_t blocks, const typename Kernel::Params& params) {
    const auto result =
        simt::Launch<Kernel>(blocks, Kernel::kSharedBytes, params, {.seed = run.seed});
    CHECK(std::string(result.message()) == "");
  };
  launch.template operator()<DeviceDivergence<S, T>>(
      run.blocks, {in, per_token.data(), student_lse.data(), teacher_lse.data(), inner.data()});
  launch.template operator()<DeviceWeights>(
      1, {Given(mask), Given(weights), Given(logprobs), Given(old), Given(cu), Given(scale), rows,
          seqs, f.tokens.is_clip, per_token.data(), coefficients.data(), loss.data(), tokens.data(),
          bad.data()});
  launch.template operator()<DeviceDivergenceGradients<S, T>>(
      run.blocks, {in, d_loss.data(), d_per_token.data(), coefficients.data(), student_lse.data(),
                   teacher_lse.data(), inner.data(), d_student.data(), vocab,
                   AllowsVectors(d_student.data(), vocab, sizeof(S))});
  return {Widen(loss),        Widen(per_token),   Widen(coefficients),
          Widen(student_lse), Widen(teacher_lse), Widen(inner),
          Widen(tokens),      Widen(d_student),   Widen(bad)};
}

std::vector<Tensor> Reference(const Forward& f) {
  std::vector<Tensor> out = ReferenceOutputs(f);
  Backward b;
  b.upstream.d_loss = DLoss();
  b.upstream.d_per_token = DPerToken(f);
  b.student = f.student;
  b.teacher = f.teacher;
  b.upstream.loss_mask = f.tokens.loss_mask;
  b.options = f.options;
  b.upstream.coefficients = out[2];
  b.upstream.student_lse = out[3];
  b.upstream.teacher_lse = out[4];
  b.upstream.inner = out[5];
  out.push_back(ReferenceOutputs(b)[0]);
  return out;
}

template <class S, class T>
void CheckCase(int64_t vocab, float beta, bool options, uint32_t seed) {
  INFO(NameOf(DTypeOf<S>::value) << " " << NameOf(DTypeOf<T>::value) << " vocab " << vocab
                                 << " beta " << beta << " options " << options);
  const Forward f =
      MakeForward(DTypeOf<S>::value, DTypeOf<T>::value, 7, vocab, beta, options, seed);
  const Results got = Emulate<S, T>(f, {.seed = seed});
  const std::vector<Tensor> want = Reference(f);
  for (size_t i = 0; i < kNumOutputs; ++i) {
    CAPTURE(i);
    CHECK(ErrorOf(got[i], want[i], 1e-3) <= 5e-6);
  }
  const double unit = sizeof(S) == 4 ? 0 : std::is_same_v<S, half> ? 0x1p-11 : 0x1p-8;
  CHECK(ErrorOf(got[kGradient], want[kGradient], 1e-3) <= 8e-6 + unit);
  CHECK(got[kBad][0] == 0);
}

TEST_CASE("CUDA generalized JSD: both passes agree with the reference for every beta and dtype") {
  uint32_t seed = 1;
  for (float beta : kBetas) {
    for (bool options : {false, true}) {
      seed += 10;
      CheckCase<float, float>(33, beta, options, seed);
      CheckCase<bfloat16, float>(512, beta, options, seed);
      CheckCase<half, bfloat16>(77, beta, options, seed);
      CheckCase<bfloat16, bfloat16>(2, beta, options, seed);
      CheckCase<float, half>(2105, beta, options, seed);
    }
  }
}

TEST_CASE(
    "CUDA generalized JSD: eight orders give the same bits, and masked rows reach none of them") {
  for (float beta : {0.0f, 0.5f, 1.0f}) {
    const Forward f = MakeForward(DType::kF32, DType::kBF16, 13, 300, beta, true, 5);
    const Results one = Emulate<float, bfloat16>(f, {.seed = 0, .blocks = 1});
    for (uint64_t seed = 1; seed < 8; ++seed) {
      CHECK(SameBits(Emulate<float, bfloat16>(f, {seed, static_cast<int64_t>(seed)}), one));
    }
    Forward dirty = f;
    dirty.tokens.logprobs = CopyAs(f.tokens.logprobs, DType::kF32);
    for (int64_t t = 3; t < 13; t += 4) {
      for (int64_t v = 0; v < 300; ++v) {
        Set(dirty.student, t * 300 + v, v % 2 == 0 ? NAN : INFINITY);
        Set(dirty.teacher, t * 300 + v, NAN);
      }
      Set(dirty.tokens.logprobs, t, NAN);
    }
    const Results got = Emulate<float, bfloat16>(dirty);
    CHECK(SameBits(got, one));
    for (int64_t v = 0; v < 300; ++v) CHECK(got[kGradient][static_cast<size_t>(3 * 300 + v)] == 0);
  }
}

TEST_CASE("CUDA generalized JSD: impossible words, equal sides and nothing that counts") {
  for (float beta : kBetas) {
    CAPTURE(beta);
    // Never chosen by either side, by the student alone; for beta 1 not by the teacher alone.
    Forward f = MakeForward(DType::kF32, DType::kF32, 3, 40, beta, false, 9);
    for (int64_t t = 0; t < 3; ++t) {
      Set(f.student, t * 40 + 5, -INFINITY);
      Set(f.teacher, t * 40 + 5, -INFINITY);
      if (beta != 0) Set(f.student, t * 40 + 6, -INFINITY);
      if (beta != 1) Set(f.teacher, t * 40 + 7, -INFINITY);
    }
    const Results got = Emulate<float, float>(f);
    const std::vector<Tensor> want = Reference(f);
    for (size_t i : {size_t{0}, size_t{1}, kGradient}) CHECK(ErrorOf(got[i], want[i]) <= 8e-6);

    Forward equal = MakeForward(DType::kF32, DType::kF32, 3, 40, beta, false, 9);
    equal.teacher = equal.student;
    const Results zero = Emulate<float, float>(equal);
    CHECK(std::abs(zero[0][0]) <= 1e-6);
    for (double value : zero[kGradient]) CHECK(std::abs(value) <= 1e-6);

    Forward none = MakeForward(DType::kF32, DType::kF32, 8, 40, beta, true, 9);
    std::fill_n(none.tokens.loss_mask.data<uint8_t>(), 8, uint8_t{0});
    const Results nothing = Emulate<float, float>(none);
    for (size_t i = 0; i <= kGradient; ++i) {
      for (double value : nothing[i]) CHECK(value == 0);
    }
  }
}

TEST_CASE("CUDA generalized JSD: weights that are no weights are counted with the first row") {
  Forward f = MakeForward(DType::kF32, DType::kF32, 1300, 3, 0.5f, false, 3);
  f.tokens.weights = FromValues(DType::kF32, {1300}, std::vector<double>(1300, 1.0));
  f.tokens.loss_mask = Tensor::Empty(DType::kU8, {1300});
  for (int64_t t = 0; t < 1300; ++t) f.tokens.loss_mask.data<uint8_t>()[t] = t % 32 == 1201 % 32;
  Set(f.tokens.weights, 78, NAN);  // masked
  Set(f.tokens.weights, 1201, -1);
  Set(f.tokens.weights, 1233, INFINITY);
  Set(f.tokens.weights, 81, NAN);
  const Results got = Emulate<float, float>(f);
  CHECK(got[kBad][0] == 3);
  CHECK(got[kBad][1] == 81);
}

}  // namespace
}  // namespace varlen::generalized_jsd::testing
