#include <cmath>
#include <limits>
#include <vector>

#include "core/loss/loss.h"
#include "core/op_reference.h"
#include "ops/generalized-jsd/generalized-jsd.h"

// The formulas of the header as plain loops in double. The backward pass computes the distributions
// and the inner sum again.
namespace varlen::generalized_jsd {
namespace {

struct Side {
  std::vector<double> log_p, slope;  // slope: dz / d logit
  double lse = 0;

  Side(const Tensor& logits, int64_t row, const Options& o) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t v = 0; v < logits.shape[1]; ++v) {
      const double x = o.logit_scale * ReadDouble(logits, row * logits.strides[0] + v);
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

double Times(double probability, double x) { return probability == 0 ? 0 : probability * x; }

struct Row {
  Side student, teacher;
  double loss = 0, inner = 0;
  std::vector<double> dz;

  template <class Params>
  Row(const Params& params, int64_t t)
      : student(params.student, t, params.options), teacher(params.teacher, t, params.options) {
    const double beta = params.options.beta;
    std::vector<double> h;
    for (size_t v = 0; v < student.log_p.size(); ++v) {
      const double log_q = student.log_p[v];
      double log_p = teacher.log_p[v];
      if (params.options.teacher_floor < 0) {
        log_p = std::max<double>(log_p, params.options.teacher_floor);
      }
      const double q = std::exp(log_q), p = std::exp(log_p);
      if (beta == 0) {
        loss += Times(p, log_p - log_q);
        dz.push_back(q - p);
        continue;
      }
      const double log_m = beta == 1 ? log_p : std::log((1 - beta) * q + beta * p);
      h.push_back(beta == 1 ? log_q - log_p : (1 - beta) * (log_q - log_m));
      inner += Times(q, h.back());
      loss += beta == 1 ? Times(q, log_q - log_p)
                        : Times((1 - beta) * q, log_q - log_m) + Times(beta * p, log_p - log_m);
    }
    for (size_t v = 0; v < h.size(); ++v) {
      dz.push_back(Times(std::exp(student.log_p[v]), h[v] - inner));
    }
    loss *= params.options.loss_scale;
  }
};

bool Counts(const Tensor& mask, int64_t t) { return !mask || mask.data<uint8_t>()[t] != 0; }

}  // namespace

Status RunReference(const Forward& params) {
  const int64_t total = params.student.shape[0];
  std::vector<float> coefficients(static_cast<size_t>(total));
  Status status = WeighTokens(params, coefficients.data(), params.tokens.data<double>());
  if (!status.ok()) return status;
  double sum = 0;
  for (int64_t t = 0; t < total; ++t) {
    for (const Tensor* out :
         {&params.per_token, &params.student_lse, &params.teacher_lse, &params.inner}) {
      out->data<double>()[t] = 0;
    }
    params.coefficients.data<double>()[t] = coefficients[t];
    if (!Counts(params.loss_mask, t)) continue;
    const Row row(params, t);
    params.per_token.data<double>()[t] = row.loss;
    params.student_lse.data<double>()[t] = row.student.lse;
    params.teacher_lse.data<double>()[t] = row.teacher.lse;
    params.inner.data<double>()[t] = row.inner;
    if (coefficients[t] != 0) sum += coefficients[t] * row.loss;
  }
  *params.loss.data<double>() = sum;
  return {};
}

Status RunReference(const Backward& params) {
  const int64_t vocab = params.student.shape[1];
  const double d_loss = params.d_loss ? ReadDouble(params.d_loss, 0) : 0;
  for (int64_t t = 0; t < params.student.shape[0]; ++t) {
    double* to = params.d_student.data<double>() + t * vocab;
    std::fill_n(to, vocab, 0.0);
    if (!Counts(params.loss_mask, t)) continue;
    const Row row(params, t);
    double factor = d_loss * ReadDouble(params.coefficients, t);
    if (params.d_per_token) factor += ReadDouble(params.d_per_token, t);
    for (int64_t v = 0; v < vocab; ++v) {
      to[v] = factor * params.options.loss_scale * row.dz[v] * row.student.slope[v];
    }
  }
  return {};
}

}  // namespace varlen::generalized_jsd
