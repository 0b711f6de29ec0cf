#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"

namespace varlen::fused_linear_jsd::testing {
namespace {
using namespace varlen::testing;

struct Shape {
  int64_t tokens, size, teacher_size, vocab;
};

// Every option at once, or none.
Forward MakeForward(DType student, DType teacher, const Shape& shape, float beta, bool options) {
  Forward op;
  const double scale = 1 / std::sqrt(static_cast<double>(shape.size));
  const double teacher_scale = 1 / std::sqrt(static_cast<double>(shape.teacher_size));
  op.student.hidden = Random(student, {shape.tokens, shape.size}, 1);
  op.student.weight = Random(student, {shape.vocab, shape.size}, 2, 2 * scale);
  op.teacher.head.hidden = Random(teacher, {shape.tokens, shape.teacher_size}, 3);
  op.teacher.head.weight = Random(teacher, {shape.vocab, shape.teacher_size}, 4, 2 * teacher_scale);
  op.options.beta = beta;
  if (!options) return op;
  op.student.bias = Random(student, {shape.vocab}, 5, 0.5);
  op.teacher.head.bias = Random(teacher, {shape.vocab}, 6, 0.5);
  op.tokens.loss_mask = Tensor::Empty(DType::kU8, {shape.tokens});
  for (int64_t t = 0; t < shape.tokens; ++t) {
    op.tokens.loss_mask.data<uint8_t>()[t] = t % 5 == 3 ? 0 : 1;
  }
  op.tokens.weights = Random(DType::kF32, {shape.tokens}, 7);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    Set(op.tokens.weights, t, std::abs(Get(op.tokens.weights, t)));
  }
  op.options = {beta, 0.8f, 5.0f, 1.25f, -7.0f, 0.64f};
  return op;
}

void TakeLargest(Forward& op, int64_t count, bool by_teacher, bool tail_bucket) {
  op.words.some = true;
  op.words.by_teacher = by_teacher;
  op.words.tail_bucket = tail_bucket;
  op.out.words = Tensor::Empty(DType::kI32, {op.student.total_tokens(), count});
}
void StoreTeacher(Forward& op, int64_t count, bool sampled) {
  const int64_t tokens = op.student.total_tokens(), vocab = op.student.vocab_size();
  op.words.some = true;
  op.words.sampled = sampled;
  op.teacher.head = {};
  op.words.ids = Tensor::Empty(DType::kI32, {tokens, count});
  op.words.teacher_logprobs = Random(DType::kF32, {tokens, count}, 8);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < count; ++k) {
      // Descending, so that they are to be sorted.
      Set(op.words.ids, t * count + k, static_cast<double>((t + (count - k) * 7) % vocab));
      Set(op.words.teacher_logprobs, t * count + k,
          -3 - std::abs(Get(op.words.teacher_logprobs, t * count + k)));
    }
  }
}

Backward BackwardOf(Forward forward, bool in_double = false) {
  const DType kDouble = DType::kF64;
  MakeOutputs make(in_double ? &kDouble : nullptr);
  forward.Visit(make);
  CHECK((in_double ? RunReference(forward) : Run(forward)).ok());
  const JsdOutputs& saved = forward.out;
  Backward op;
  op.student = forward.student;
  if (!forward.words.some) op.teacher = forward.teacher;
  op.options = forward.options;
  op.upstream.d_loss = FromValues(DType::kF32, {}, {1.25});
  op.upstream.d_per_token = Random(DType::kF32, {forward.student.total_tokens()}, 9);
  op.upstream.loss_mask = forward.tokens.loss_mask;
  op.upstream.coefficients = saved.coefficients;
  op.upstream.student_lse = saved.student_lse;
  op.upstream.teacher_lse = saved.teacher_lse;
  op.upstream.inner = saved.inner;
  op.upstream.words = saved.words;
  op.upstream.slopes = saved.slopes;
  op.upstream.tail = saved.tail;
  return op;
}

// All words, the largest of either side, stored ones, and sampled ones.
std::vector<Forward> Forms(const Forward& op, int64_t count) {
  std::vector<Forward> ops{op};
  for (bool by_teacher : {false, true}) {
    ops.push_back(op);
    TakeLargest(ops.back(), count, by_teacher, by_teacher);
  }
  ops.push_back(op);
  StoreTeacher(ops.back(), count, false);
  if (op.options.beta == 1) {
    ops.push_back(op);
    StoreTeacher(ops.back(), 1, true);
  }
  return ops;
}

TEST_CASE(
    "fusedLinearJsd: both passes agree with the reference, with the same bits on any threads") {
  for (const Shape& shape : {Shape{1, 1, 2, 1}, Shape{5, 7, 12, 33}, Shape{130, 45, 20, 515}}) {
    for (float beta : {0.0f, 0.5f, 1.0f}) {
      for (bool options : {false, true}) {
        if (shape.tokens == 130 && beta == 1) continue;
        const Forward base = MakeForward(DType::kF32, DType::kF32, shape, beta, options);
        for (const Forward& op : Forms(base, std::min<int64_t>(4, shape.vocab))) {
          INFO("tokens " << shape.tokens << " vocab " << shape.vocab << " beta " << beta
                         << " some words " << op.words.some << " stored " << op.words.stored());
          CHECK(Inaccuracy(op, 3e-6) == "");
          CHECK(Inaccuracy(BackwardOf(op), 4e-6) == "");
        }
      }
    }
  }
}

TEST_CASE("fusedLinearJsd: student and teacher may have different types and sizes") {
  for (DType student : kStorageTypes) {
    for (DType teacher : kStorageTypes) {
      const Forward op = MakeForward(student, teacher, {9, 24, 17, 70}, 0.5f, true);
      INFO(NameOf(student) << " from " << NameOf(teacher));
      CHECK(Inaccuracy(op, 3e-6) == "");
      CHECK(Inaccuracy(BackwardOf(op), 4e-6) == "");
    }
  }
}

TEST_CASE("fusedLinearJsd: the reference's gradient is the difference of its loss") {
  const DType kDouble = DType::kF64;
  for (float beta : {0.0f, 0.3f, 1.0f}) {
    const Forward base = MakeForward(kDouble, kDouble, {4, 3, 2, 9}, beta, true);
    for (const Forward& op : Forms(base, 3)) {
      if (op.words.sampled) continue;  // not the difference of its loss: a weight is held fixed
      const Backward back = BackwardOf(op, true);
      const std::vector<Tensor> gradients = ReferenceOutputs(back);
      const auto total = [&] {
        const std::vector<Tensor> out = ReferenceOutputs(op);
        double sum = 1.25 * Get(out[0], 0);
        for (int64_t t = 0; t < 4; ++t) sum += Get(back.upstream.d_per_token, t) * Get(out[1], t);
        return sum;
      };
      const Tensor inputs[] = {op.student.hidden, op.student.weight, op.student.bias};
      for (size_t n = 0; n < std::size(inputs); ++n) {
        for (int64_t i = 0; i < inputs[n].size(); ++i) {
          const double at = Get(inputs[n], i), step = 1e-5;
          Set(inputs[n], i, at + step);
          const double above = total();
          Set(inputs[n], i, at - step);
          const double below = total();
          Set(inputs[n], i, at);
          INFO("beta " << beta << " some words " << op.words.some << " input " << n << " element "
                       << i);
          CHECK(std::abs((above - below) / (2 * step) - Get(gradients[n], i)) < 1e-8);
        }
      }
    }
  }
}

TEST_CASE("fusedLinearJsd: rows that do not count are not read") {
  const Forward base = MakeForward(DType::kF32, DType::kF32, {9, 3, 4, 40}, 0.5f, true);
  for (const Forward& clean : Forms(base, 5)) {
    Forward dirty = clean;
    dirty.student.hidden = CopyAs(clean.student.hidden, DType::kF32);
    for (int64_t i = 0; i < 3; ++i) Set(dirty.student.hidden, 3 * 3 + i, NAN);
    if (clean.teacher) {
      dirty.teacher.head.hidden = CopyAs(clean.teacher.head.hidden, DType::kF32);
      for (int64_t i = 0; i < 4; ++i) Set(dirty.teacher.head.hidden, 3 * 4 + i, NAN);
    } else {
      dirty.words.ids = CopyAs(clean.words.ids, DType::kI32);
      for (int64_t k = 0; k < 5; ++k) Set(dirty.words.ids, 3 * 5 + k, -100);
    }
    CHECK(BitDifference(Outputs(clean), Outputs(dirty)) == "");
    CHECK(BitDifference(Outputs(BackwardOf(clean)), Outputs(BackwardOf(dirty))) == "");
  }
}

TEST_CASE("fusedLinearJsd: a token has the same bits alone as beside others") {
  const Forward base = MakeForward(DType::kF32, DType::kF32, {40, 33, 20, 600}, 0.5f, false);
  for (int64_t count : {0, 6}) {
    Forward all = base;
    if (count > 0) TakeLargest(all, count, false, true);
    const Tensor whole = Outputs(all)[1];
    Forward one = base;
    for (Tensor* hidden : {&one.student.hidden, &one.teacher.head.hidden}) {
      hidden->offset += 17 * hidden->strides[0];
      hidden->shape[0] = 1;
    }
    if (count > 0) TakeLargest(one, count, false, true);
    CHECK(Get(Outputs(one)[1], 0) == Get(whole, 17));
  }
}

}  // namespace
}  // namespace varlen::fused_linear_jsd::testing
