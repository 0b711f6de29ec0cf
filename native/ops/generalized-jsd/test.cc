#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/generalized-jsd/generalized-jsd.h"

namespace varlen::generalized_jsd::testing {
namespace {
using namespace varlen::testing;

constexpr float kBetas[] = {0.0f, 0.1f, 0.5f, 0.9f, 1.0f};

// `saved` replaces what the forward pass leaves.
Backward BackwardOf(Forward forward, uint32_t seed = 9, const JsdOutputs* saved = nullptr) {
  if (saved == nullptr) {
    MakeOutputs make;
    forward.Visit(make);
    CHECK(Run(forward).ok());
    saved = &forward.out;
  }
  Backward op;
  op.student = forward.student;
  if (!forward.words.some) op.teacher = forward.teacher;
  op.options = forward.options;
  JsdUpstream& up = op.upstream;
  up.d_loss = FromValues(DType::kF32, {}, {1.25});
  up.d_per_token = Random(DType::kF32, {forward.student.shape[0]}, seed);
  up.loss_mask = forward.tokens.loss_mask;
  up.coefficients = saved->coefficients;
  up.student_lse = saved->student_lse;
  up.teacher_lse = saved->teacher_lse;
  up.inner = saved->inner;
  up.words = saved->words;
  up.slopes = saved->slopes;
  up.tail = saved->tail;
  return op;
}

// Over the `count` largest words of one side.
void TakeLargest(Forward& op, int64_t count, bool by_teacher, bool tail_bucket) {
  op.words.some = true;
  op.words.by_teacher = by_teacher;
  op.words.tail_bucket = tail_bucket;
  op.out.words = Tensor::Empty(DType::kI32, {op.student.shape[0], count});
}

// Over the teacher's log-probabilities at these words, as if they had been stored.
void Store(Forward& op, const std::vector<int32_t>& ids, const std::vector<double>& logprobs) {
  const int64_t rows = op.student.shape[0], count = static_cast<int64_t>(ids.size()) / rows;
  op.words.some = true;
  op.teacher = {};
  op.words.ids = Tensor::Empty(DType::kI32, {rows, count});
  std::copy(ids.begin(), ids.end(), op.words.ids.data<int32_t>());
  op.words.teacher_logprobs = FromValues(DType::kF32, {rows, count}, logprobs);
}

// Student [2, 1, 0, -1], teacher [1, 2, 0.5, -2]: the table of the specification.
TEST_CASE("generalizedJsd: the numbers of the worked example") {
  struct Want {
    float beta, temperature;
    int64_t words;  // 0: all
    bool tail_bucket;
    double loss, gradient[4];
  };
  for (const Want& want : {
           Want{0, 1, 0, true, .41510399, {.41532191, -.38449562, -.05150395, .02067766}},
           Want{0, 1, 2, true, .39701276, {.41532191, -.38449562, -.02253582, -.00829047}},
           Want{.5f, 1, 0, true, .10164347, {.09319833, -.08220592, -.01563248, .00464007}},
           Want{.5f, 1, 2, true, .09700149, {.09461969, -.08168302, -.00945746, -.00347921}},
           Want{.5f, 1, 2, false, .11094407, {.09830597, -.09830597, 0, 0}},
           Want{1, 1, 0, true, .43114317, {.38923465, -.33057421, -.07803930, .01937885}},
           Want{1, 1, 2, true, .41099309, {.40220958, -.32580100, -.05585915, -.02054943}},
           Want{.5f, 2, 0, true, .02599779, {.02231590, -.02083738, -.00645787, .00497935}},
       }) {
    Forward op;
    op.student = FromValues(DType::kF32, {1, 4}, {2, 1, 0, -1});
    op.teacher = FromValues(DType::kF32, {1, 4}, {1, 2, .5, -2});
    op.options.beta = want.beta;
    op.options.temperature = want.temperature;
    if (want.words > 0) TakeLargest(op, want.words, false, want.tail_bucket);
    INFO("beta " << want.beta << " words " << want.words);
    Backward back = BackwardOf(op);
    back.upstream.d_loss = FromValues(DType::kF32, {}, {1});
    back.upstream.d_per_token = {};
    CHECK(std::abs(Get(Outputs(op)[0], 0) - want.loss) < 1e-7);
    CHECK(std::abs(Get(ReferenceOutputs(op)[0], 0) - want.loss) < 1e-8);
    for (int64_t v = 0; v < 4; ++v) {
      CHECK(std::abs(Get(Outputs(back)[0], v) - want.gradient[v]) < 1e-7);
      CHECK(std::abs(Get(ReferenceOutputs(back)[0], v) - want.gradient[v]) < 1e-7);
    }
  }
}

Tensor Mask(int64_t tokens) {
  Tensor mask = Tensor::Empty(DType::kU8, {tokens});
  for (int64_t t = 0; t < tokens; ++t) mask.data<uint8_t>()[t] = t % 3 == 1 ? 0 : 1;
  return mask;
}

TEST_CASE(
    "generalizedJsd: both passes agree with the reference, with the same bits on any threads") {
  for (DType dtype : kStorageTypes) {
    for (int64_t vocab : {1, 8, 41, 1271, 4096}) {
      for (float beta : kBetas) {
        Forward op;
        op.student = Random(dtype, {5, vocab}, 1, 2);
        op.teacher = Random(vocab == 41 ? DType::kBF16 : dtype, {5, vocab}, 2, 2);
        op.options.beta = beta;
        if (vocab == 41) {
          op.tokens.loss_mask = Mask(5);
          op.tokens.weights = FromValues(DType::kF32, {5}, {1, NAN, 0.5, 0, 2});
          op.tokens.logprobs = Random(DType::kF32, {5}, 3);
          op.tokens.old_logprobs = Random(DType::kF32, {5}, 4);
          op.tokens.is_clip = 2;
          op.options = {beta, 2.0f, 5.0f, 1.5f, -6.0f, 4.0f};
        }
        INFO(NameOf(dtype) << " vocab " << vocab << " beta " << beta);
        CHECK(Inaccuracy(op, 2e-6) == "");
        CHECK(Inaccuracy(BackwardOf(op), 3e-6) == "");
      }
    }
  }
}

// Every way to choose words of a [5, vocab] op, vocab > 4.
std::vector<Forward> OverWords(const Forward& op) {
  std::vector<Forward> ops;
  for (bool by_teacher : {false, true}) {
    for (bool tail_bucket : {false, true}) {
      for (int64_t count : {1, 3}) {
        ops.push_back(op);
        TakeLargest(ops.back(), count, by_teacher, tail_bucket);
      }
    }
  }
  const auto last = static_cast<int32_t>(op.student.shape[1] - 1);
  const std::vector<int32_t> ids = {2, 0, last, 0, last, 1, 3, 1, 2, last, 3, 0, 1, 0, 2};
  const std::vector<double> logprobs = {-1, -2, -1.5, -3, -.5, -2, -4, -2,
                                        -1, -2, -2,   -3, -1,  -1, -8};
  for (bool tail_bucket : {false, true}) {
    ops.push_back(op);
    Store(ops.back(), ids, logprobs);
    ops.back().words.tail_bucket = tail_bucket;
  }
  if (op.options.beta == 1) {
    ops.push_back(op);
    Store(ops.back(), {2, last, 0, 1, 2}, {-1, -2, -1.5, -3, -.5});
    ops.back().words.sampled = true;
  }
  return ops;
}

TEST_CASE("generalizedJsd: over some words it agrees with the reference as well") {
  for (DType dtype : kStorageTypes) {
    // Not fewer: with little left for the tail, 1 - sum shows the rounding of float32 logits.
    for (int64_t vocab : {17, 41, 2500}) {
      for (float beta : kBetas) {
        Forward base;
        base.student = Random(dtype, {5, vocab}, 1, 2);
        base.teacher = Random(dtype, {5, vocab}, 2, 2);
        base.options.beta = beta;
        if (vocab == 41) {
          base.tokens.loss_mask = Mask(5);
          base.options = {beta, 2.0f, 5.0f, -1.5f, -6.0f, 4.0f};
        }
        for (const Forward& op : OverWords(base)) {
          INFO(NameOf(dtype) << " vocab " << vocab << " beta " << beta << " by teacher "
                             << op.words.by_teacher << " bucket " << op.words.tail_bucket
                             << " stored " << op.words.stored());
          CHECK(Inaccuracy(op, 2e-6) == "");
          CHECK(Inaccuracy(BackwardOf(op), 3e-6) == "");
        }
      }
    }
  }
}

TEST_CASE("generalizedJsd: the reference's gradient is the difference of its loss") {
  for (float beta : kBetas) {
    Forward whole;
    whole.student = Random(DType::kF64, {5, 6}, 1);
    whole.teacher = Random(DType::kF64, {5, 6}, 2);
    whole.options = {beta, 0.75f, 4.0f, 1.25f, 0, 1};
    std::vector<Forward> ops = OverWords(whole);
    ops.push_back(whole);
    for (Forward& op : ops) {
      const DType kDouble = DType::kF64;
      Forward saved = op;
      MakeOutputs make(&kDouble);
      saved.Visit(make);
      CHECK(RunReference(saved).ok());
      const Backward back = BackwardOf(op, 9, &saved.out);
      const Tensor gradient = ReferenceOutputs(back)[0];
      const JsdOutputs& at_rest = saved.out;
      const auto total = [&] {
        Forward moved = op;
        MakeOutputs make(&kDouble);
        moved.Visit(make);
        CHECK(RunReference(moved).ok());
        double sum = 1.25 * Get(moved.out.loss, 0);
        for (int64_t t = 0; t < 5; ++t) {
          sum += Get(back.upstream.d_per_token, t) * Get(moved.out.per_token, t);
        }
        if (!op.words.sampled) return sum;
        // Its weight is a constant: the loss is weight * ln q with the weight of the start.
        sum = 0;
        for (int64_t t = 0; t < 5; ++t) {
          const double c =
              1.25 * Get(moved.out.coefficients, t) + Get(back.upstream.d_per_token, t);
          const double weight = -Get(at_rest.tail, t);
          const double log_q = -Get(moved.out.per_token, t) / Get(moved.out.tail, t);
          sum += c * weight * log_q;
        }
        return sum;
      };
      for (int64_t i = 0; i < op.student.size(); ++i) {
        const double at = Get(op.student, i), step = 1e-5;
        Set(op.student, i, at + step);
        const double above = total();
        Set(op.student, i, at - step);
        const double below = total();
        Set(op.student, i, at);
        INFO("beta " << beta << " some words " << op.words.some << " element " << i);
        CHECK(std::abs((above - below) / (2 * step) - Get(gradient, i)) < 1e-8);
      }
    }
  }
}

TEST_CASE("generalizedJsd: equal logits are taken from the lowest word, and all words are all") {
  Forward op;
  op.student = FromValues(DType::kF32, {1, 6}, {1, 3, 1, 1, 3, NAN});
  op.teacher = FromValues(DType::kF32, {1, 6}, {0, 2, 2, 2, 0, 0});
  TakeLargest(op, 3, false, true);
  const auto words_of = [](const Forward& op) {
    const std::vector<Tensor> out = Outputs(op);
    const Tensor& words = out[out.size() - 3];
    return std::vector<int32_t>(words.data<int32_t>(), words.data<int32_t>() + words.size());
  };
  CHECK(words_of(op) == std::vector<int32_t>{0, 1, 4});
  TakeLargest(op, 2, true, true);
  CHECK(words_of(op) == std::vector<int32_t>{1, 2});

  for (float beta : kBetas) {
    Forward whole;
    whole.student = Random(DType::kF32, {4, 33}, 1, 2);
    whole.teacher = Random(DType::kF32, {4, 33}, 2, 2);
    whole.options.beta = beta;
    Forward all = whole, few = whole;
    TakeLargest(all, 33, false, false);
    TakeLargest(few, 7, false, true);
    CHECK(Difference(Outputs(all)[1], Outputs(whole)[1], 1e-6) == "");
    CHECK(Difference(Outputs(BackwardOf(all))[0], Outputs(BackwardOf(whole))[0], 1e-6) == "");
    // Merging bins never raises an f-divergence.
    const Tensor coarse = Outputs(few)[1], fine = Outputs(whole)[1];
    for (int64_t t = 0; t < 4; ++t) CHECK(Get(coarse, t) <= Get(fine, t) + 1e-6);
  }
}

TEST_CASE("generalizedJsd: stored words outside the vocabulary or twice in a row are refused") {
  Forward op;
  op.student = Random(DType::kF32, {2, 5}, 1);
  Status status;
  Store(op, {0, 1, 4, 5}, {-1, -1, -1, -1});
  Outputs(op, &status);
  CHECK(status.code == Code::kIndex);
  CHECK(status.message.find("got 5 in row 1") != std::string::npos);
  Store(op, {0, 1, 4, -1}, {-1, -1, -1, -1});
  Outputs(op, &status);
  CHECK(status.code == Code::kIndex);
  Store(op, {3, 3, 0, 1}, {-1, -1, -1, -1});
  Outputs(op, &status);
  CHECK(status.code == Code::kIndex);
  op.tokens.loss_mask = Tensor::Empty(DType::kU8, {2});
  op.tokens.loss_mask.data<uint8_t>()[0] = 0;
  op.tokens.loss_mask.data<uint8_t>()[1] = 1;
  Outputs(op, &status);
  CHECK(status.ok());
}

TEST_CASE("generalizedJsd: never negative, 0 for equal sides, bounded, symmetric at 0.5") {
  for (float beta : kBetas) {
    Forward op;
    op.student = Random(DType::kF32, {20, 60}, 1, 3);
    op.teacher = Random(DType::kF32, {20, 60}, 2, 3);
    op.options.beta = beta;
    const double bound =
        beta == 0 || beta == 1 ? 1e30 : -beta * std::log(beta) - (1 - beta) * std::log(1 - beta);
    const std::vector<Tensor> out = Outputs(op), back = Outputs(BackwardOf(op));
    for (int64_t t = 0; t < 20; ++t) {
      CHECK(Get(out[1], t) >= 0);
      CHECK(Get(out[1], t) <= bound + 1e-6);
      double sum = 0;
      for (int64_t v = 0; v < 60; ++v) sum += Get(back[0], t * 60 + v);
      CHECK(std::abs(sum) < 2e-6);
    }
    Forward swapped = op;
    std::swap(swapped.student, swapped.teacher);
    if (beta == 0.5f) CHECK(Difference(Outputs(swapped)[1], out[1], 1e-6) == "");
    Forward same = op;
    same.teacher = same.student;
    for (int64_t t = 0; t < 20; ++t) CHECK(std::abs(Get(Outputs(same)[1], t)) < 1e-6);
  }
}

TEST_CASE("generalizedJsd: rows that do not count are not read, and none at all give 0") {
  Forward clean;
  clean.student = Random(DType::kF32, {4, 9}, 1);
  clean.teacher = Random(DType::kF32, {4, 9}, 2);
  clean.tokens.loss_mask = Mask(4);
  Forward dirty = clean;
  dirty.student = CopyAs(clean.student, DType::kF32);
  dirty.teacher = CopyAs(clean.teacher, DType::kF32);
  for (int64_t v = 0; v < 9; ++v) {
    Set(dirty.student, 9 + v, NAN);
    Set(dirty.teacher, 9 + v, NAN);
  }
  CHECK(BitDifference(Outputs(clean), Outputs(dirty)) == "");
  CHECK(BitDifference(Outputs(BackwardOf(clean)), Outputs(BackwardOf(dirty))) == "");
  TakeLargest(clean, 3, false, true);
  TakeLargest(dirty, 3, false, true);
  CHECK(BitDifference(Outputs(clean), Outputs(dirty)) == "");
  CHECK(BitDifference(Outputs(BackwardOf(clean)), Outputs(BackwardOf(dirty))) == "");
  std::fill_n(dirty.tokens.loss_mask.data<uint8_t>(), 4, uint8_t{0});
  CHECK(Get(Outputs(dirty)[0], 0) == 0);
  dirty.words = {};
  CHECK(Get(Outputs(dirty)[0], 0) == 0);
  CHECK(Get(Outputs(dirty)[6], 0) == 0);
}

TEST_CASE(
    "generalizedJsd: what the teacher never says costs infinity under KL(q || p), unless floored") {
  Forward op;
  op.student = FromValues(DType::kF32, {1, 3}, {0, 0, 0});
  op.teacher = FromValues(DType::kF32, {1, 3}, {0, 0, -INFINITY});
  op.options.beta = 1;
  CHECK(Get(Outputs(op)[0], 0) == INFINITY);
  op.options.teacher_floor = -10;
  CHECK(Get(Outputs(op)[0], 0) < 10);
  op.options = {};
  op.options.beta = 0;
  CHECK(std::abs(Get(Outputs(op)[0], 0) - std::log(1.5)) < 1e-6);
  op.options.beta = 0.5f;
  CHECK(std::isfinite(Get(Outputs(op)[0], 0)));
}

}  // namespace
}  // namespace varlen::generalized_jsd::testing
