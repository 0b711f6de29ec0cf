#include <cmath>

#include "core/op_reference.h"
#include "ops/rms-norm/rms-norm.h"

namespace varlen::rms_norm {
namespace {

double Rounded(double value, DType dtype) {
  if (dtype == DType::kBF16) return static_cast<float>(bfloat16(static_cast<float>(value)));
  if (dtype == DType::kF16) return static_cast<float>(half(static_cast<float>(value)));
  return value;
}

}  // namespace

Status RunReference(const Forward& params) {
  const int64_t hidden = params.weight.shape[0];
  for (int64_t r = 0; r < params.scale.size(); ++r) {
    const auto h = [&](int64_t c) {
      const double x = ReadDouble(params.x, r * hidden + c);
      if (!params.residual) return x;
      return Rounded(x + ReadDouble(params.residual, r * hidden + c), params.x.dtype);
    };
    double squares = 0;
    for (int64_t c = 0; c < hidden; ++c) squares += h(c) * h(c);
    const double s = 1 / std::sqrt(squares / static_cast<double>(hidden) + params.eps);
    params.scale.data<double>()[r] = s;
    for (int64_t c = 0; c < hidden; ++c) {
      const double w = ReadDouble(params.weight, c) + params.weight_offset;
      params.out.data<double>()[r * hidden + c] = w * h(c) * s;
      if (params.residual) params.sum.data<double>()[r * hidden + c] = h(c);
    }
  }
  return {};
}

Status RunReference(const Backward& params) {
  const int64_t hidden = params.weight.shape[0];
  double* d_weight = params.d_weight.data<double>();
  for (int64_t c = 0; c < hidden; ++c) d_weight[c] = 0;
  for (int64_t r = 0; r < params.scale.size(); ++r) {
    const double s = ReadDouble(params.scale, r);
    const auto h = [&](int64_t c) { return ReadDouble(params.sum, r * hidden + c); };
    const auto dy = [&](int64_t c) { return ReadDouble(params.d_out, r * hidden + c); };
    const auto g = [&](int64_t c) {
      return dy(c) * (ReadDouble(params.weight, c) + params.weight_offset);
    };
    double mean = 0;
    for (int64_t c = 0; c < hidden; ++c) mean += g(c) * h(c) / static_cast<double>(hidden);
    for (int64_t c = 0; c < hidden; ++c) {
      double dx = s * (g(c) - h(c) * s * s * mean);
      if (params.d_sum) dx += ReadDouble(params.d_sum, r * hidden + c);
      params.dx.data<double>()[r * hidden + c] = dx;
      d_weight[c] += dy(c) * h(c) * s;
    }
  }
  return {};
}

}  // namespace varlen::rms_norm
