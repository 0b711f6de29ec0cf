#include <algorithm>

#include "core/op_reference.h"
#include "core/parallel.h"
#include "ops/linear/linear.h"

namespace varlen::linear {

Status RunReference(const Forward& params) {
  const int64_t out_features = params.weight.shape[0], in_features = params.weight.shape[1];
  const int64_t rows = params.out.size() / std::max<int64_t>(1, out_features);
  return ParallelFor(rows, [&](int64_t r, int) {
    for (int64_t o = 0; o < out_features; ++o) {
      double sum = params.bias ? ReadDouble(params.bias, o) : 0;
      for (int64_t i = 0; i < in_features; ++i) {
        sum += ReadDouble(params.x, r * in_features + i) *
               ReadDouble(params.weight, o * in_features + i);
      }
      params.out.data<double>()[r * out_features + o] = sum;
    }
  });
}

Status RunReference(const Backward& params) {
  const int64_t out_features = params.weight.shape[0], in_features = params.weight.shape[1];
  const int64_t rows = params.d_out.size() / std::max<int64_t>(1, out_features);
  const auto d_out = [&](int64_t r, int64_t o) {
    return ReadDouble(params.d_out, r * out_features + o);
  };
  for (int64_t r = 0; r < rows && params.dx; ++r) {
    for (int64_t i = 0; i < in_features; ++i) {
      double sum = 0;
      for (int64_t o = 0; o < out_features; ++o) {
        sum += d_out(r, o) * ReadDouble(params.weight, o * in_features + i);
      }
      params.dx.data<double>()[r * in_features + i] = sum;
    }
  }
  for (int64_t o = 0; o < out_features; ++o) {
    for (int64_t i = 0; i < in_features && params.d_weight; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < rows; ++r) {
        sum += d_out(r, o) * ReadDouble(params.x, r * in_features + i);
      }
      params.d_weight.data<double>()[o * in_features + i] = sum;
    }
    if (!params.d_bias) continue;
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += d_out(r, o);
    params.d_bias.data<double>()[o] = sum;
  }
  return {};
}

}  // namespace varlen::linear
