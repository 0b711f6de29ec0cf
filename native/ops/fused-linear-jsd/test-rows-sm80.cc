#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/emulated.h"
#include "core/linear-head-emulated.h"
#include "core/op_test.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"
#include "ops/fused-linear-jsd/passes.h"

// The passes, run by the host emulator, against the float64 reference: chunks of tokens that do not
// hold all, whatever the grid.
namespace varlen::fused_linear_jsd::testing {
namespace {

using namespace varlen::testing;

constexpr int64_t kTokens = 290;  // three chunks of 128 at most, of which a fifth is masked

struct Case {
  Forward forward;  // with the reference's outputs
  Backward backward;
};

// words: 0, the whole vocabulary; else as many of the student's largest.
Case Make(DType student, DType teacher, int64_t words, float beta) {
  Case c;
  Forward& f = c.forward;
  const auto head = [](DType dtype, int64_t size, uint32_t seed) {
    const double scale = 1 / std::sqrt(static_cast<double>(size));
    LinearHead made;
    made.hidden = Random(dtype, {kTokens, size}, seed);
    made.weight = Random(dtype, {150, size}, seed + 1, 2 * scale);
    made.bias = Random(dtype, {150}, seed + 2, 0.5);
    return made;
  };
  f.student = head(student, 20, 1);
  f.teacher.head = head(teacher, 9, 11);
  f.options = {beta, 0.8f, 5.0f, 1.25f, -7.0f, 0.64f};
  f.tokens.loss_mask = Tensor::Empty(DType::kU8, {kTokens});
  for (int64_t t = 0; t < kTokens; ++t) f.tokens.loss_mask.data<uint8_t>()[t] = t % 5 != 3;
  if (words > 0) {
    f.words.some = true;
    f.out.words = Tensor::Empty(DType::kI32, {kTokens, words});
  }
  const DType kDouble = DType::kF64;
  MakeOutputs make(&kDouble);
  f.Visit(make);
  REQUIRE(RunReference(f).ok());

  Backward& b = c.backward;
  b.student = f.student;
  if (words == 0) b.teacher = f.teacher;
  b.options = f.options;
  JsdUpstream& up = b.upstream;
  up.d_loss = FromValues(DType::kF32, {}, {1.25});
  up.d_per_token = Random(DType::kF32, {kTokens}, 77);
  up.loss_mask = f.tokens.loss_mask;
  up.coefficients = f.out.coefficients;
  up.student_lse = f.out.student_lse;
  up.teacher_lse = f.out.teacher_lse;
  up.inner = f.out.inner;
  up.words = f.out.words;
  up.slopes = f.out.slopes;
  up.tail = f.out.tail;
  return c;
}

// perToken, studentLse, dHidden, dWeight, dBias.
template <class S, class T>
std::vector<Tensor> Emulated(const Case& c, const EmulatedRun& run, const LogitBudget& budget) {
  const Forward& f = c.forward;
  const HostOrTensor<int32_t> no_targets = Host(std::vector<int32_t>(kTokens, 0));
  EmulatedHead<S> student(f.student, no_targets, f.options.shape(), run);
  EmulatedHead<T> teacher(f.teacher.head, no_targets, f.options.shape(), run);
  std::vector<std::unique_ptr<simt::GlobalMemory>> memory;
  const auto take = [&]<class E>(int64_t count) {
    memory.push_back(std::make_unique<simt::GlobalMemory>(count * sizeof(E)));
    return reinterpret_cast<E*>(memory.back()->data());
  };
  const auto launch = [&]<class Kernel>(int64_t blocks, const typename Kernel::Params& params) {
    const std::string problem = student.template Launch<Kernel>(blocks, params);
    CHECK(problem == "");
    return problem.empty();
  };
  const auto mask = Upload<uint8_t>(f.tokens.loss_mask);
  const simt::GlobalArray<float> per_token(std::vector<float>(kTokens, 0));
  const simt::GlobalArray<double> student_lse(std::vector<double>(kTokens, 0)),
      teacher_lse(std::vector<double>(kTokens, 0)), inner(std::vector<double>(kTokens, 0));
  const int64_t num_words = f.words.some ? f.out.words.shape[1] : 0;
  const auto zeros = static_cast<size_t>(kTokens * num_words);
  const simt::GlobalArray<int32_t> words(std::vector<int32_t>(zeros, 0)),
      problems(std::vector<int32_t>(kTokens, 0));
  const simt::GlobalArray<float> slopes(std::vector<float>(zeros, 0)),
      tail(std::vector<float>(kTokens, 0));
  const JsdOptions& o = f.options;
  const jsd::DeviceOptions options = jsd::DeviceOptionsOf(
      o.beta, o.temperature, o.softcap, o.logit_scale, o.teacher_floor, o.loss_scale);

  const DeviceHeads<S, T> heads{student.in(), teacher.in(), true};
  const auto forward = LogitMemory<S>::Forward(heads, budget, take);
  const MaskFilter filter{mask.data(), nullptr};
  if (num_words > 0) {
    using Rows = jsd::DeviceWordDivergence<float, float>;
    Rows::Params rows{{},
                      num_words,
                      nullptr,
                      nullptr,
                      f.words.by_teacher,
                      f.words.tail_bucket,
                      f.words.sampled,
                      per_token.data(),
                      student_lse.data(),
                      words.data(),
                      slopes.data(),
                      tail.data(),
                      problems.data()};
    rows.in.options = options;
    ForwardPasses<Rows>(heads, filter, rows, forward, launch);
  } else {
    using Rows = jsd::DeviceDivergence<float, float>;
    Rows::Params rows{{}, per_token.data(), student_lse.data(), teacher_lse.data(), inner.data()};
    rows.in.options = options;
    ForwardPasses<Rows>(heads, filter, rows, forward, launch);
  }

  const auto d_loss = Upload<float>(c.backward.upstream.d_loss),
             d_per_token = Upload<float>(c.backward.upstream.d_per_token),
             weights = Upload<float>(CopyAs(f.out.coefficients, DType::kF32));
  DeviceHeads<S, T> sides = heads;
  sides.has_teacher = num_words == 0;
  const auto backward = LogitMemory<S>::Backward(sides, budget, take);
  const RowBounds bounds{.mask = mask.data(),
                         .d_loss = d_loss.data(),
                         .d_per_token = d_per_token.data(),
                         .coefficients = weights.data(),
                         .inner = num_words > 0 ? nullptr : inner.data(),
                         .slopes = num_words > 0 ? slopes.data() : nullptr,
                         .tail = tail.data(),
                         .num_words = num_words,
                         .loss_scale = options.loss_scale,
                         .log_vocab = std::log(150.0f)};
  const DeviceLinearGradients<S> out{student.d_hidden().data(), 20, student.d_weight().data(),
                                     student.d_bias().data()};
  const auto differentiate = [&](auto rows) {
    rows.d_loss = d_loss.data();
    rows.d_per_token = d_per_token.data();
    rows.coefficients = weights.data();
    rows.student_lse = student_lse.data();
    BackwardPasses(sides, bounds, options, rows, out, backward, launch);
  };
  if (num_words > 0) {
    jsd::DeviceWordGradients<float>::Params rows{};
    rows.num_words = num_words;
    rows.activation = options.activation;
    rows.loss_scale = options.loss_scale;
    rows.words = words.data();
    rows.slopes = slopes.data();
    rows.tail = tail.data();
    differentiate(rows);
  } else {
    jsd::DeviceDivergenceGradients<float, float>::Params rows{};
    rows.teacher_lse = teacher_lse.data();
    rows.inner = inner.data();
    differentiate(rows);
  }
  return {Download(per_token), Download(student_lse), Download(student.d_hidden()),
          Download(student.d_weight()), Download(student.d_bias())};
}

template <class S, class T>
void CheckCase(int64_t words, float beta, const EmulatedRun& run) {
  INFO(NameOf(DTypeOf<S>::value) << " beta " << beta << " words " << words);
  const Case c = Make(DTypeOf<S>::value, DTypeOf<T>::value, words, beta);
  const std::vector<Tensor> want = ReferenceOutputs(c.backward);
  const std::vector<Tensor> got = Emulated<S, T>(c, run, {1});
  CHECK(Difference(got[0], c.forward.out.per_token, 4e-6) == "");
  CHECK(Difference(got[1], c.forward.out.student_lse, 1e-6) == "");
  // du is rounded for the products, half a unit, and dHidden is in that dtype.
  const double unit = sizeof(S) == 4 ? 0 : std::is_same_v<S, half> ? 0x1p-11 : 0x1p-8;
  for (size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK(ErrorOf(Widen(got[2 + i]), want[i]) <= 6e-6 + (i < 2 ? 1.5 * unit : 0));
  }
}

TEST_CASE(
    "CUDA fused JSD: chunks of tokens agree with the reference over all words and over some") {
  CheckCase<float, bfloat16>(0, 0.3f, {.seed = 1});
  CheckCase<bfloat16, half>(0, 0.0f, {.seed = 2, .blocks = 3});
  CheckCase<half, float>(0, 1.0f, {.seed = 3, .blocks = 1, .padding = 8});
  CheckCase<float, half>(7, 0.5f, {.seed = 4});
  CheckCase<bfloat16, float>(7, 1.0f, {.seed = 5, .padding = 3});
  CheckCase<half, bfloat16>(7, 0.0f, {.seed = 6, .blocks = 4});
}

TEST_CASE(
    "CUDA fused JSD: orders of warps and grids give the same bits, and so do a token's chunks") {
  for (int64_t words : {0, 7}) {
    const Case c = Make(DType::kBF16, DType::kBF16, words, 0.5f);
    const auto one = Emulated<bfloat16, bfloat16>(c, {.seed = 0, .blocks = 1}, {1});
    for (uint64_t seed = 1; seed < 4; ++seed) {
      const EmulatedRun run{.seed = seed, .blocks = static_cast<int64_t>(1 + seed)};
      CHECK(SameBits(Emulated<bfloat16, bfloat16>(c, run, {1}), one));
    }
    // Sums over tokens are cut at chunks; what is a token's own is not.
    auto whole = Emulated<bfloat16, bfloat16>(c, {.seed = 9}, {});
    auto own = one;
    for (auto* results : {&whole, &own}) results->resize(3);
    CHECK(SameBits(whole, own));
  }
}

}  // namespace
}  // namespace varlen::fused_linear_jsd::testing
