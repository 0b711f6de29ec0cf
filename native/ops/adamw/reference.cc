#include <cmath>

#include "core/op_reference.h"
#include "ops/adamw/adamw.h"

namespace varlen::adamw {

Status RunReference(const Forward& params) {
  if (params.gradient_norm && !std::isfinite(ReadDouble(params.gradient_norm, 0))) return {};
  const double k = static_cast<double>(params.step), lr = params.lr, wd = params.weight_decay;
  const double c1 = 1 - std::pow(params.beta1, k), c2 = 1 - std::pow(params.beta2, k);
  for (size_t n = 0; n < params.gradients.size(); ++n) {
    const Tensor& target = params.masters.empty() ? params.parameters[n] : params.masters[n];
    for (int64_t i = 0; i < target.size(); ++i) {
      const double g = ReadDouble(params.gradients[n], i);
      double& p = target.data<double>()[i];
      double& m = params.exp_avg[n].data<double>()[i];
      double& v = params.exp_avg_sq[n].data<double>()[i];
      m = params.beta1 * m + (1 - params.beta1) * g;
      v = params.beta2 * v + (1 - params.beta2) * g * g;
      if (params.eps_before_correction) {
        p -= lr * std::sqrt(c2) / c1 * m / (std::sqrt(v) + params.eps);
        p *= 1 - lr * wd;
      } else {
        p = p * (1 - lr * wd) - lr / c1 * m / (std::sqrt(v / c2) + params.eps);
      }
      params.parameters[n].data<double>()[i] = p;
    }
  }
  return {};
}

}  // namespace varlen::adamw
