#include <cmath>
#include <string>
#include <vector>

#include "core/emulated.h"
#include "core/jsd-words-device.h"
#include "core/op_test.h"
#include "core/tile-product-device.h"
#include "ops/generalized-jsd/generalized-jsd.h"

// The kernels over some words, run by the host emulator, against the float64 reference.
namespace varlen::generalized_jsd::testing {
namespace {

using namespace varlen::testing;
using namespace varlen::jsd;

constexpr float kBetas[] = {0.0f, 0.3f, 1.0f};

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
};

Tensor DLoss() { return FromValues(DType::kF32, {}, {1.25}); }
Tensor DPerToken(int64_t rows) { return Random(DType::kF32, {rows}, 77); }

// perToken, studentLse, words, slopes, tail, dStudent, problems. Tokens are weighed by the kernel
// of the whole vocabulary; here their coefficients are given.
template <class S, class T>
std::vector<Tensor> Emulated(const Forward& f, const Tensor& coefficients, const Run& run = {}) {
  const int64_t rows = f.student.shape[0], vocab = f.student.shape[1];
  const int64_t num_words = f.words.stored() ? f.words.ids.shape[1] : f.out.words.shape[1];
  const auto student = Upload<S>(f.student);
  const auto teacher = Upload<T>(f.teacher);
  const auto stored = Upload<T>(f.words.teacher_logprobs);
  const auto ids = Upload<int32_t>(f.words.ids);
  const auto mask = Upload<uint8_t>(f.tokens.loss_mask);
  const auto d_loss = Upload<float>(DLoss()), d_per_token = Upload<float>(DPerToken(rows)),
             weights = Upload<float>(coefficients);
  const simt::GlobalArray<float> per_token(rows), slopes(rows * num_words), tail(rows);
  const simt::GlobalArray<double> lse(rows);
  const simt::GlobalArray<int32_t> words(rows * num_words), problems(rows);
  const simt::GlobalArray<S> d_student(rows * vocab);
  const JsdOptions& o = f.options;
  const DeviceOptions options = DeviceOptionsOf(o.beta, o.temperature, o.softcap, o.logit_scale,
                                                o.teacher_floor, o.loss_scale);
  const bool vectors = AllowsVectors(student.data(), vocab, sizeof(S));
  const DeviceSides<S, T> in{student.data(), Given(teacher),
                             vocab,          vocab,
                             Given(mask),    rows,
                             vocab,          options,
                             vectors,        AllowsVectors(teacher.data(), vocab, sizeof(T))};
  Emulate<DeviceWordDivergence<S, T>>(
      run.blocks,
      {in, num_words, Given(ids), Given(stored), f.words.by_teacher, f.words.tail_bucket,
       f.words.sampled, per_token.data(), lse.data(), words.data(), slopes.data(), tail.data(),
       problems.data()},
      run.seed);
  Emulate<DeviceWordGradients<S>>(
      run.blocks,
      {student.data(), vocab, Given(mask), rows, vocab, num_words, options.activation, o.loss_scale,
       vectors, d_loss.data(), d_per_token.data(), weights.data(), lse.data(), words.data(),
       slopes.data(), tail.data(), d_student.data(), vocab, vectors},
      run.seed);
  return {Download(per_token), Download(lse),       Download(words),   Download(slopes),
          Download(tail),      Download(d_student), Download(problems)};
}

// The same from the reference, problems apart; its coefficients in `coefficients`.
std::vector<Tensor> Reference(const Forward& f, Tensor* coefficients) {
  Forward forward = f;
  const DType kDouble = DType::kF64;
  MakeOutputs make(&kDouble);
  forward.Visit(make);
  REQUIRE(RunReference(forward).ok());
  const JsdOutputs& out = forward.out;
  *coefficients = CopyAs(out.coefficients, DType::kF32);
  Backward b;
  b.student = f.student;
  b.options = f.options;
  b.upstream.d_loss = DLoss();
  b.upstream.d_per_token = DPerToken(f.student.shape[0]);
  b.upstream.loss_mask = f.tokens.loss_mask;
  b.upstream.coefficients = out.coefficients;
  b.upstream.student_lse = out.student_lse;
  b.upstream.words = out.words;
  b.upstream.slopes = out.slopes;
  b.upstream.tail = out.tail;
  return {out.per_token, out.student_lse, out.words, out.slopes, out.tail, ReferenceOutputs(b)[0]};
}

Forward Make(DType student, DType teacher, int64_t vocab, float beta, bool options) {
  Forward f;
  f.student = Random(student, {5, vocab}, 1, 2);
  f.teacher = Random(teacher, {5, vocab}, 2, 2);
  f.options.beta = beta;
  if (!options) return f;
  f.options = {beta, 2.0f, 5.0f, -1.5f, -6.0f, 4.0f};
  f.tokens.loss_mask = Tensor::Empty(DType::kU8, {5});
  for (int64_t t = 0; t < 5; ++t) f.tokens.loss_mask.data<uint8_t>()[t] = t != 3;
  return f;
}
void TakeLargest(Forward& f, int64_t count, bool by_teacher, bool tail_bucket) {
  f.words.some = true;
  f.words.by_teacher = by_teacher;
  f.words.tail_bucket = tail_bucket;
  f.out.words = Tensor::Empty(DType::kI32, {5, count});
}
// Stored log-probabilities, words in no order.
void Store(Forward& f, DType dtype, int64_t count, bool tail_bucket) {
  const int64_t vocab = f.student.shape[1];
  f.words.some = true;
  f.words.tail_bucket = tail_bucket;
  f.teacher = {};
  f.words.ids = Tensor::Empty(DType::kI32, {5, count});
  std::vector<double> logprobs;
  for (int64_t i = 0; i < 5 * count; ++i) {
    f.words.ids.data<int32_t>()[i] = static_cast<int32_t>((i * 7 + i / count) % vocab);
    logprobs.push_back(-2.5 - static_cast<double>(i % 3));
  }
  f.words.teacher_logprobs = FromValues(dtype, {5, count}, logprobs);
}

template <class S, class T>
void CheckCase(const Forward& f, uint64_t seed) {
  INFO(NameOf(DTypeOf<S>::value) << " beta " << f.options.beta << " by teacher "
                                 << f.words.by_teacher << " bucket " << f.words.tail_bucket
                                 << " stored " << f.words.stored() << " sampled "
                                 << f.words.sampled);
  REQUIRE(f.Validate().message == "");
  Tensor coefficients;
  const std::vector<Tensor> want = Reference(f, &coefficients);
  const std::vector<Tensor> got = Emulated<S, T>(f, coefficients, {.seed = seed});
  for (size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(Difference(got[i], want[i], i == 5 ? 4e-6 : 3e-6) == "");
  }
  for (int64_t t = 0; t < 5; ++t) CHECK(Get(got[6], t) == kNoProblem);
}

TEST_CASE("CUDA generalized JSD: over some words it agrees with the reference as well") {
  uint64_t seed = 0;
  for (float beta : kBetas) {
    for (bool options : {false, true}) {
      for (bool flag : {false, true}) {
        Forward f = Make(DType::kF32, DType::kF32, 41, beta, options);
        TakeLargest(f, 5, flag, true);
        CheckCase<float, float>(f, ++seed);
        Forward g = Make(DType::kBF16, DType::kF16, 77, beta, options);
        TakeLargest(g, 3, flag, flag == options);
        CheckCase<bfloat16, half>(g, ++seed);
        Forward s = Make(DType::kF16, DType::kF32, 50, beta, options);
        Store(s, DType::kF32, 4, flag);
        CheckCase<half, float>(s, ++seed);
      }
    }
  }
  Forward one = Make(DType::kF32, DType::kF32, 60, 1, true);
  Store(one, DType::kF32, 1, true);
  one.words.sampled = true;
  CheckCase<float, float>(one, 3);
}

TEST_CASE("CUDA generalized JSD: over some words eight orders give the same bits") {
  Forward f = Make(DType::kF32, DType::kBF16, 90, 0.5f, true);
  TakeLargest(f, 4, false, true);
  Tensor coefficients;
  Reference(f, &coefficients);
  const std::vector<Tensor> one = Emulated<float, bfloat16>(f, coefficients, {.blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(SameBits(
        Emulated<float, bfloat16>(f, coefficients, {seed, 1 + static_cast<int64_t>(seed % 3)}),
        one));
  }
  // What stands in the masked row reaches none of them.
  for (int64_t v = 0; v < 90; ++v) {
    Set(f.student, 3 * 90 + v, NAN);
    Set(f.teacher, 3 * 90 + v, INFINITY);
  }
  CHECK(SameBits(Emulated<float, bfloat16>(f, coefficients), one));
}

TEST_CASE("CUDA generalized JSD: stored words that are none, or twice the same, are told") {
  Forward f = Make(DType::kF32, DType::kF32, 50, 0.5f, false);
  Store(f, DType::kF32, 3, true);
  f.words.ids.data<int32_t>()[4] = 50;
  f.words.ids.data<int32_t>()[7] = f.words.ids.data<int32_t>()[6];
  f.words.ids.data<int32_t>()[12] = -1;
  const Tensor coefficients = FromValues(DType::kF32, {5}, {1, 1, 1, 1, 1});
  const std::vector<Tensor> got = Emulated<float, float>(f, coefficients);
  const double want[] = {kNoProblem, kOutsideVocabulary, kTwice, kNoProblem, kOutsideVocabulary};
  for (int64_t t = 0; t < 5; ++t) CHECK(Get(got[6], t) == want[t]);
}

}  // namespace
}  // namespace varlen::generalized_jsd::testing
