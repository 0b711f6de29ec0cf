#include "core/jsd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "core/loss/loss.h"
#include "core/op_reference.h"
#include "core/parallel.h"

namespace varlen {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Status CheckNumber(const char* name, double value, bool ok, const char* expected) {
  if (ok && std::isfinite(value)) return {};
  return Invalid(Code::kRange, name, "is out of range", std::to_string(value), expected);
}
Status Missing(const char* missing, const std::string& beside) {
  return Invalid(Code::kMissingInput, missing, "is required beside " + beside, "nothing",
                 "a value");
}

double Times(double probability, double x) { return probability == 0 ? 0 : probability * x; }

double LogSumExp(const std::vector<double>& values) {
  const double max = *std::max_element(values.begin(), values.end());
  if (std::isinf(max)) return max;
  double sum = 0;
  for (double value : values) sum += std::exp(value - max);
  return max + std::log(sum);
}
// ln(1 - e^lse), of at least 1e-7: a sum may round to 1.
double LogTail(double lse) { return std::log(-std::expm1(std::min(lse, -1e-7))); }

double LogMixture(double log_q, double log_p, double beta) {
  const double a = log_q + std::log1p(-beta), b = log_p + std::log(beta);
  const double high = std::max(a, b), low = std::min(a, b);
  return low == -kInfinity ? high : high + std::log1p(std::exp(low - high));
}

// One row: the words' log-probabilities on both sides, then what follows from them.
struct WordRow {
  std::vector<double> log_q, log_p;
  double loss = 0, tail = 0;
  std::vector<double> slopes;

  void Diverge(const JsdOptions& options, bool tail_bucket) {
    const double lse_q = LogSumExp(log_q), lse_p = LogSumExp(log_p);
    const size_t words = log_q.size();
    if (tail_bucket) {
      log_q.push_back(LogTail(lse_q));
      log_p.push_back(LogTail(lse_p));
    } else {
      for (double& x : log_q) x -= lse_q;
      for (double& x : log_p) x -= lse_p;
    }
    Floor(options);
    const double beta = options.beta;
    double inner = 0;
    for (size_t i = 0; i < log_q.size(); ++i) {
      const double q = std::exp(log_q[i]), p = std::exp(log_p[i]);
      if (beta == 0) {
        loss += Times(p, log_p[i] - log_q[i]);
        continue;
      }
      const double qh = Times(q, Slope(i, beta));
      inner += qh;
      loss += qh;
      if (beta < 1) loss += Times(beta * p, log_p[i] - LogMixture(log_q[i], log_p[i], beta));
    }
    // dz of a bin over its q: the tail's belongs to every word that has no bin of its own.
    const auto dz = [&](size_t i) {
      const double q = std::exp(log_q[i]);
      return beta == 0 ? q - std::exp(log_p[i]) : Times(q, Slope(i, beta) - inner);
    };
    tail = tail_bucket ? dz(words) / std::exp(log_q[words]) : 0;
    for (size_t i = 0; i < words; ++i) slopes.push_back(dz(i));
  }
  void DivergeSampled(const JsdOptions& options) {
    Floor(options);
    const double weight = log_q[0] - log_p[0];
    loss = weight * log_q[0];
    slopes = {weight * -std::expm1(log_q[0])};
    tail = -weight;
  }

 private:
  void Floor(const JsdOptions& options) {
    if (options.teacher_floor == 0) return;
    for (double& x : log_p) x = std::max<double>(x, options.teacher_floor);
  }
  double Slope(size_t i, double beta) const {
    if (beta == 1) return log_q[i] - log_p[i];
    return (1 - beta) * (log_q[i] - LogMixture(log_q[i], log_p[i], beta));
  }
};

// The stored words of a row in ascending order, with the teacher's log-probabilities as logits.
Status ReadStored(const JsdWords& form, int64_t row, int64_t vocab_size, WordLogit* to) {
  const int64_t count = form.ids.shape[1];
  const int32_t* ids = form.ids.data<int32_t>() + row * count;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = {ids[i], static_cast<float>(ReadDouble(form.teacher_logprobs, row * count + i))};
  }
  std::sort(to, to + count, [](const WordLogit& a, const WordLogit& b) { return a.word < b.word; });
  const auto refuse = [&](const char* problem, int32_t word, const std::string& expected) {
    Status status = Invalid(Code::kIndex, "ids", problem,
                            std::to_string(word) + " in row " + std::to_string(row), expected);
    status.details = {{"row", static_cast<double>(row)}};
    return status;
  };
  for (int64_t i = 0; i < count; ++i) {
    if (to[i].word < 0 || to[i].word >= vocab_size) {
      return refuse("is outside the vocabulary", to[i].word,
                    "0.." + std::to_string(vocab_size - 1) + ", or lossMask 0");
    }
    if (i > 0 && to[i].word == to[i - 1].word) {
      return refuse("has a word twice", to[i].word, "words that differ");
    }
  }
  return {};
}

}  // namespace

Status JsdOptions::Validate() const {
  for (const Status& status : {
           CheckNumber("beta", beta, beta >= 0 && beta <= 1, "between 0 and 1"),
           CheckNumber("temperature", temperature, temperature > 0, "a finite number above 0"),
           CheckNumber("softcap", softcap, softcap >= 0, "a finite number >= 0 (0 turns it off)"),
           CheckNumber("logitScale", logit_scale, true, "a finite number"),
           CheckNumber("teacherFloor", teacher_floor, teacher_floor <= 0, "a finite number < 0"),
       }) {
    if (!status.ok()) return status;
  }
  return {};
}

Status JsdTokens::Validate(int64_t total_tokens) const {
  if (Status status = CheckNumber("isClip", is_clip, is_clip >= 0, "a finite number above 0");
      !status.ok()) {
    return status;
  }
  if (logprobs && !old_logprobs) return Missing("oldLogprobs", "logprobs");
  if (old_logprobs && !logprobs) return Missing("logprobs", "oldLogprobs");
  if (seq_scale && !cu_seqlens) return Missing("cuSeqlens", "plan");
  if (cu_seqlens && !seq_scale) return Missing("plan", "cuSeqlens");
  if (!seq_scale) return {};
  if (cu_seqlens.size() != seq_scale.size() + 1) {
    return Invalid(Code::kPlanMismatch, "plan", "was made for another number of sequences",
                   std::to_string(seq_scale.size()), std::to_string(cu_seqlens.size() - 1));
  }
  if (!cu_seqlens.on_host()) return {};
  return loss::CheckCuSeqlens(cu_seqlens.data(), seq_scale.size(), total_tokens);
}

Status JsdTokens::Weigh(int64_t total_tokens, float* coefficients, double* tokens) const {
  const float* given = weights ? weights.data<float>() : nullptr;
  int64_t active = 0;
  for (int64_t t = 0; t < total_tokens; ++t) active += Counts(t);
  *tokens = static_cast<double>(active);
  const auto weigh = [&](int64_t t, double scale) -> Status {
    coefficients[t] = 0;
    if (!Counts(t)) return {};
    const double weight = given == nullptr ? 1 : given[t];
    if (!(weight >= 0) || std::isinf(weight)) {
      return Invalid(Code::kWeight, "weights", "must be finite and not negative",
                     "weights[" + std::to_string(t) + "] = " + std::to_string(weight), ">= 0");
    }
    double rho = 1;
    if (is_clip > 0 && logprobs) {
      const double log_ratio = double{logprobs.data<float>()[t]} - old_logprobs.data<float>()[t];
      rho = std::min<double>(std::exp(std::clamp(log_ratio, -20.0, 20.0)), is_clip);
    }
    coefficients[t] = static_cast<float>(weight * rho * scale);
    return {};
  };
  if (!seq_scale) {
    for (int64_t t = 0; t < total_tokens; ++t) {
      Status status = weigh(t, 1.0 / static_cast<double>(active));
      if (!status.ok()) return status;
    }
    return {};
  }
  const int32_t* cu = cu_seqlens.data();
  Status status = loss::CheckCuSeqlens(cu, seq_scale.size(), total_tokens);
  for (int64_t i = 0; i < seq_scale.size() && status.ok(); ++i) {
    for (int64_t t = cu[i]; t < cu[i + 1] && status.ok(); ++t) {
      status = weigh(t, seq_scale.data()[i]);
    }
  }
  return status;
}

Status JsdWords::Validate(const JsdOptions& options, int64_t vocab_size, bool has_teacher) const {
  if (stored() != static_cast<bool>(ids)) {
    return stored() ? Missing("ids", "teacherLogprobs") : Missing("teacherLogprobs", "ids");
  }
  if (!has_teacher && !stored()) {
    return Invalid(Code::kMissingInput, "teacher", "is required", "nothing",
                   "logits, or logprobs and ids");
  }
  if (has_teacher && stored()) {
    return Invalid(Code::kIncompatible, "teacher", "has logits beside stored log-probabilities",
                   "both", "one of them");
  }
  if (stored() && (ids.shape[1] < 1 || ids.shape[1] > vocab_size)) {
    return Invalid(Code::kShape, "ids", "must have at least one word and no more than there are",
                   std::to_string(ids.shape[1]) + " words", "1.." + std::to_string(vocab_size));
  }
  if (sampled && options.beta != 1) {
    return Invalid(Code::kIncompatible, "beta", "must be 1 with one sampled word per token",
                   std::to_string(options.beta), "1");
  }
  return {};
}

void JsdOutputs::Clear() const {
  for (const Tensor* tensor : {&per_token, &slopes, &tail}) {
    if (*tensor) std::fill_n(tensor->data<float>(), tensor->size(), 0.0f);
  }
  for (const Tensor* tensor : {&student_lse, &teacher_lse, &inner}) {
    if (*tensor) std::fill_n(tensor->data<double>(), tensor->size(), 0.0);
  }
  if (words) std::fill_n(words.data<int32_t>(), words.size(), 0);
}

void JsdOutputs::WriteLoss() const {
  double sum = 0;
  const float* c = coefficients.data<float>();
  for (int64_t t = 0; t < coefficients.shape[0]; ++t) {
    // A token of weight 0 adds nothing, though its divergence be infinite.
    if (c[t] != 0) sum += double{c[t]} * per_token.data<float>()[t];
  }
  *loss.data<float>() = static_cast<float>(sum);
}

std::vector<int32_t> CountedRows(const Tensor& loss_mask, int64_t total_tokens) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < total_tokens; ++row) {
    if (!loss_mask || loss_mask.data<uint8_t>()[row] != 0) {
      rows.push_back(static_cast<int32_t>(row));
    }
  }
  return rows;
}

Status DivergeOverWords(const JsdOptions& options, const JsdWords& form,
                        const std::vector<int32_t>& rows, int64_t vocab_size,
                        const JsdSide& student, const JsdSide& teacher, const JsdOutputs& out) {
  const int64_t count = static_cast<int64_t>(rows.size()), per_row = out.words.shape[1];
  std::vector<WordLogit> of_student(static_cast<size_t>(count * per_row));
  std::vector<WordLogit> of_teacher(of_student.size());
  std::vector<double> student_lse(rows.size()), teacher_lse(rows.size(), 0.0);
  const auto copy_words = [](const std::vector<WordLogit>& from, std::vector<WordLogit>& to) {
    for (size_t i = 0; i < from.size(); ++i) to[i].word = from[i].word;
  };
  const auto ask = [&](const JsdSide& side, std::vector<double>& lse,
                       std::vector<WordLogit>& entries, bool largest) {
    return side(lse.data(), {per_row, entries.data(), largest});
  };
  Status status;
  if (form.stored()) {
    for (int64_t i = 0; i < count && status.ok(); ++i) {
      status = ReadStored(form, rows[i], vocab_size, of_teacher.data() + i * per_row);
    }
    copy_words(of_teacher, of_student);
    if (status.ok()) status = ask(student, student_lse, of_student, false);
  } else if (form.by_teacher) {
    status = ask(teacher, teacher_lse, of_teacher, true);
    copy_words(of_teacher, of_student);
    if (status.ok()) status = ask(student, student_lse, of_student, false);
  } else {
    status = ask(student, student_lse, of_student, true);
    copy_words(of_student, of_teacher);
    if (status.ok()) status = ask(teacher, teacher_lse, of_teacher, false);
  }
  if (!status.ok()) return status;

  return ParallelFor(count, [&](int64_t i, int) {
    const int64_t at = rows[i];
    WordRow row;
    for (int64_t k = i * per_row; k < (i + 1) * per_row; ++k) {
      row.log_q.push_back(of_student[k].logit - student_lse[i]);
      row.log_p.push_back(of_teacher[k].logit - teacher_lse[i]);
    }
    if (form.sampled) {
      row.DivergeSampled(options);
    } else {
      row.Diverge(options, form.tail_bucket);
    }
    out.per_token.data<float>()[at] = static_cast<float>(options.loss_scale * row.loss);
    out.student_lse.data<double>()[at] = student_lse[i];
    out.tail.data<float>()[at] = static_cast<float>(row.tail);
    for (int64_t k = 0; k < per_row; ++k) {
      out.words.data<int32_t>()[at * per_row + k] = of_student[i * per_row + k].word;
      out.slopes.data<float>()[at * per_row + k] = static_cast<float>(row.slopes[k]);
    }
  });
}

JsdWordGradients::JsdWordGradients(const JsdOptions& options, const JsdUpstream& upstream,
                                   const std::vector<int32_t>& rows)
    : per_row_(upstream.words.shape[1]) {
  for (int32_t row : rows) {
    const float factor = upstream.Factor(row, options);
    lse_.push_back(upstream.student_lse.data<double>()[row]);
    dense_.push_back({factor * upstream.tail.data<float>()[row], 0.0f, 0.0f});
    const int64_t first = row * per_row_;
    const int32_t* words = upstream.words.data<int32_t>() + first;
    words_.insert(words_.end(), words, words + per_row_);
    for (int64_t k = 0; k < per_row_; ++k) {
      sparse_.push_back(factor * upstream.slopes.data<float>()[first + k]);
    }
  }
}

LogitGradients JsdWordGradients::gradients() const {
  return {lse_.data(), dense_.data(), per_row_, words_.data(), sparse_.data(), true};
}

}  // namespace varlen
