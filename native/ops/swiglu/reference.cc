#include <cmath>

#include "core/op_reference.h"
#include "ops/swiglu/swiglu.h"

namespace varlen::swiglu {
namespace {
double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
}  // namespace

Status RunReference(const Forward& params) {
  for (int64_t i = 0; i < params.gate.size(); ++i) {
    const double g = ReadDouble(params.gate, i);
    params.out.data<double>()[i] = g * Sigmoid(g) * ReadDouble(params.up, i);
  }
  return {};
}

Status RunReference(const Backward& params) {
  for (int64_t i = 0; i < params.gate.size(); ++i) {
    const double g = ReadDouble(params.gate, i), s = Sigmoid(g), dy = ReadDouble(params.d_out, i);
    params.d_up.data<double>()[i] = dy * g * s;
    params.d_gate.data<double>()[i] = dy * ReadDouble(params.up, i) * s * (1 + g * (1 - s));
  }
  return {};
}

}  // namespace varlen::swiglu
