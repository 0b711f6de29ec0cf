#include <algorithm>
#include <cmath>

#include "core/op_reference.h"
#include "ops/grad-clip/grad-clip.h"

namespace varlen::grad_clip {

Status RunReference(const Forward& params) {
  double squares = 0;
  for (const Tensor& gradient : params.gradients) {
    for (int64_t i = 0; i < gradient.size(); ++i) {
      squares += ReadDouble(gradient, i) * ReadDouble(gradient, i);
    }
  }
  const double norm = std::sqrt(squares);
  params.norm.data<double>()[0] = norm;
  if (!std::isfinite(norm) || std::isinf(params.max_norm)) return {};
  const double factor = std::min(1.0, params.max_norm / (norm + 1e-6));
  for (const Tensor& gradient : params.gradients) {
    for (int64_t i = 0; i < gradient.size(); ++i) gradient.data<double>()[i] *= factor;
  }
  return {};
}

}  // namespace varlen::grad_clip
