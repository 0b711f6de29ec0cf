#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/jsd.h"
#include "core/op_reference.h"

// The formulas of core/jsd.h as plain loops in double, for the references of both ops. dz is always
// made of the h of every word, whatever bin it is in.
namespace varlen::jsd_reference {

using Doubles = std::vector<double>;

// One side of one row, over the whole vocabulary.
struct Side {
  Doubles log_p, slope;  // slope: dz / du
  double lse = 0;

  Side() = default;
  Side(const Doubles& raw, const JsdOptions& o) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double u : raw) {
      const double x = o.logit_scale * u;
      const double tanh = o.softcap > 0 ? std::tanh(x / o.softcap) : 0;
      log_p.push_back((o.softcap > 0 ? o.softcap * tanh : x) / o.temperature);
      slope.push_back(o.logit_scale * (1 - tanh * tanh) / o.temperature);
      max = std::max(max, log_p.back());
    }
    for (double z : log_p) sum += std::exp(z - max);
    lse = max + std::log(sum);
    for (double& z : log_p) z -= lse;
  }
};

inline double Times(double probability, double x) { return probability == 0 ? 0 : probability * x; }

// L over bins, h of every bin and sum_k q[k] h[k]. For beta = 0 h is -p / q.
struct Bins {
  Doubles log_q, log_p, h;
  double loss = 0, inner = 0;

  Bins(const Doubles& student, const Doubles& teacher, const JsdOptions& options)
      : log_q(student), log_p(teacher) {
    const double beta = options.beta;
    for (size_t i = 0; i < log_q.size(); ++i) {
      if (options.teacher_floor < 0) {
        log_p[i] = std::max<double>(log_p[i], options.teacher_floor);
      }
      const double q = std::exp(log_q[i]), p = std::exp(log_p[i]);
      const double log_m = beta == 1 ? log_p[i] : std::log((1 - beta) * q + beta * p);
      if (beta == 0) {
        loss += Times(p, log_p[i] - log_q[i]);
        h.push_back(-p / q);
        continue;
      }
      h.push_back(beta == 1 ? log_q[i] - log_p[i] : (1 - beta) * (log_q[i] - log_m));
      inner += Times(q, h.back());
      loss += beta == 1
                  ? Times(q, log_q[i] - log_p[i])
                  : Times((1 - beta) * q, log_q[i] - log_m) + Times(beta * p, log_p[i] - log_m);
    }
  }
  // The factor of q in dz. A sum of p is 1, floored or not.
  double Pull(size_t i, const JsdOptions& options) const {
    return options.beta == 0 ? 1 + h[i] : h[i] - inner;
  }
};

inline double Sum(const Doubles& log_p) {
  double sum = 0;
  for (double x : log_p) sum += std::exp(x);
  return sum;
}

// The largest words of a row, ascending; equal logits from the lowest word.
inline std::vector<int32_t> LargestWords(const Doubles& log_p, int64_t count) {
  std::vector<int32_t> words(log_p.size());
  for (size_t v = 0; v < words.size(); ++v) words[v] = static_cast<int32_t>(v);
  std::stable_sort(words.begin(), words.end(),
                   [&](int32_t a, int32_t b) { return log_p[a] > log_p[b]; });
  words.resize(static_cast<size_t>(count));
  std::sort(words.begin(), words.end());
  return words;
}

struct WordRow {
  std::vector<int32_t> words;
  Doubles slopes;
  double loss = 0, tail = 0;

  // teacher_log_p: at the words.
  WordRow(const JsdOptions& options, const JsdWords& form, const std::vector<int32_t>& words,
          const Doubles& student_log_p, Doubles teacher_log_p)
      : words(words) {
    Doubles log_q;
    for (int32_t word : words) log_q.push_back(student_log_p[word]);
    if (form.sampled) {
      if (options.teacher_floor < 0) {
        teacher_log_p[0] = std::max<double>(teacher_log_p[0], options.teacher_floor);
      }
      const double weight = log_q[0] - teacher_log_p[0];
      loss = weight * log_q[0];
      slopes = {weight * (1 - std::exp(log_q[0]))};
      tail = -weight;
      return;
    }
    for (Doubles* side : {&log_q, &teacher_log_p}) {
      const double sum = Sum(*side);
      if (form.tail_bucket) {
        side->push_back(std::log(std::max(1 - sum, -std::expm1(-1e-7))));
      } else {
        for (double& x : *side) x -= std::log(sum);
      }
    }
    const Bins bins(log_q, teacher_log_p, options);
    loss = bins.loss;
    if (form.tail_bucket) tail = bins.Pull(words.size(), options);
    for (size_t i = 0; i < words.size(); ++i) {
      slopes.push_back(Times(std::exp(log_q[i]), bins.Pull(i, options)));
    }
  }
};

// student(t), teacher(t): raw logits of a row.
template <class Student, class Teacher>
Status Forward(const JsdOptions& options, const JsdWords& form, const JsdTokens& tokens,
               int64_t total_tokens, const Student& student, const Teacher& teacher,
               const JsdOutputs& out) {
  std::vector<float> coefficients(static_cast<size_t>(total_tokens));
  Status status = tokens.Weigh(total_tokens, coefficients.data(), out.tokens.data<double>());
  if (!status.ok()) return status;
  const auto clear = [](const Tensor& tensor) {
    if (tensor) std::fill_n(tensor.data<double>(), tensor.size(), 0.0);
  };
  clear(out.per_token), clear(out.student_lse), clear(out.teacher_lse), clear(out.inner);
  clear(out.slopes), clear(out.tail);
  if (out.words) std::fill_n(out.words.data<int32_t>(), out.words.size(), 0);
  double sum = 0;
  for (int64_t t = 0; t < total_tokens; ++t) {
    out.coefficients.data<double>()[t] = coefficients[t];
    if (!tokens.Counts(t)) continue;
    const Side q(student(t), options);
    const Side p = form.stored() ? Side() : Side(teacher(t), options);
    out.student_lse.data<double>()[t] = q.lse;
    double loss;
    if (!form.some) {
      const Bins bins(q.log_p, p.log_p, options);
      out.teacher_lse.data<double>()[t] = p.lse;
      out.inner.data<double>()[t] = bins.inner;
      loss = bins.loss;
    } else {
      const int64_t count = out.words.shape[1];
      std::vector<int32_t> words;
      if (form.stored()) {
        const int32_t* ids = form.ids.template data<int32_t>() + t * count;
        words.assign(ids, ids + count);
        std::sort(words.begin(), words.end());
      } else {
        words = LargestWords(form.by_teacher ? p.log_p : q.log_p, count);
      }
      Doubles log_p;
      for (int32_t word : words) {
        if (!form.stored()) {
          log_p.push_back(p.log_p[word]);
          continue;
        }
        for (int64_t i = t * count; i < (t + 1) * count; ++i) {
          if (form.ids.template data<int32_t>()[i] == word) {
            log_p.push_back(ReadDouble(form.teacher_logprobs, i));
          }
        }
      }
      const WordRow row(options, form, words, q.log_p, log_p);
      loss = row.loss;
      out.tail.data<double>()[t] = row.tail;
      std::copy(row.words.begin(), row.words.end(), out.words.data<int32_t>() + t * count);
      std::copy(row.slopes.begin(), row.slopes.end(), out.slopes.data<double>() + t * count);
    }
    loss *= options.loss_scale;
    out.per_token.data<double>()[t] = loss;
    if (coefficients[t] != 0) sum += coefficients[t] * loss;
  }
  *out.loss.data<double>() = sum;
  return {};
}

// add(t, du): takes the gradient of the student's raw logits of a row that counts. Over the whole
// vocabulary distributions and sums are computed again; over some words the gradient is that of the
// slopes that the forward pass left.
template <class Student, class Teacher, class Add>
void Backward(const JsdOptions& options, const JsdUpstream& upstream, int64_t total_tokens,
              const Student& student, const Teacher& teacher, const Add& add) {
  for (int64_t t = 0; t < total_tokens; ++t) {
    if (ReadOr(upstream.loss_mask, t, 1) == 0) continue;
    const Side q(student(t), options);
    double factor = ReadOr(upstream.d_loss, 0, 0) * ReadDouble(upstream.coefficients, t);
    factor += ReadOr(upstream.d_per_token, t, 0);
    Doubles dz;
    if (upstream.some_words()) {
      for (double log_q : q.log_p) dz.push_back(std::exp(log_q) * ReadDouble(upstream.tail, t));
      const int64_t count = upstream.words.shape[1];
      for (int64_t i = t * count; i < (t + 1) * count; ++i) {
        dz[upstream.words.data<int32_t>()[i]] = ReadDouble(upstream.slopes, i);
      }
    } else {
      const Bins bins(q.log_p, Side(teacher(t), options).log_p, options);
      for (size_t v = 0; v < q.log_p.size(); ++v) {
        const double probability = std::exp(q.log_p[v]);
        dz.push_back(options.beta == 0 ? probability - std::exp(bins.log_p[v])
                                       : Times(probability, bins.Pull(v, options)));
      }
    }
    for (size_t v = 0; v < dz.size(); ++v) dz[v] *= factor * options.loss_scale * q.slope[v];
    add(t, dz);
  }
}

}  // namespace varlen::jsd_reference
