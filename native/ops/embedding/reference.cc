#include "core/op_reference.h"
#include "ops/embedding/embedding.h"

namespace varlen::embedding {

Status RunReference(const Forward& params) {
  const int64_t hidden = params.weight.shape[1];
  for (int64_t t = 0; t < params.ids.size(); ++t) {
    for (int64_t c = 0; c < hidden; ++c) {
      params.out.data<double>()[t * hidden + c] =
          ReadDouble(params.weight, params.ids.data()[t] * hidden + c);
    }
  }
  return {};
}

Status RunReference(const Backward& params) {
  const int64_t hidden = params.weight.shape[1];
  double* d_weight = params.d_weight.data<double>();
  for (int64_t i = 0; i < params.d_weight.size(); ++i) d_weight[i] = 0;
  for (int64_t t = 0; t < params.ids.size(); ++t) {
    for (int64_t c = 0; c < hidden; ++c) {
      d_weight[params.ids.data()[t] * hidden + c] += ReadDouble(params.d_out, t * hidden + c);
    }
  }
  return {};
}

}  // namespace varlen::embedding
