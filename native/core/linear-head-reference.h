#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/linear-head.h"
#include "core/op_reference.h"

// A linear head as plain loops in double: what the references of the fused losses share.
namespace varlen {

// u of row t before any activation: hidden[t] . weight[v] + bias[v].
inline std::vector<double> ReferenceLogits(const LinearHead& head, int64_t t) {
  std::vector<double> logits;
  for (int64_t v = 0; v < head.vocab_size(); ++v) {
    double u = ReadOr(head.bias, v, 0);
    for (int64_t k = 0; k < head.hidden_size(); ++k) {
      u += ReadDouble(head.hidden, t * head.hidden.strides[0] + k) *
           ReadDouble(head.weight, v * head.weight.strides[0] + k);
    }
    logits.push_back(u);
  }
  return logits;
}

// The head's gradients, a row at a time; float64 tensors, of which those not wanted are absent.
class ReferenceHeadGradients {
 public:
  ReferenceHeadGradients(const LinearHead& head, const LinearHeadGradients& out)
      : head_(head), out_(out) {
    for (const Tensor* tensor : {&out.d_hidden, &out.d_weight, &out.d_bias}) {
      if (*tensor) std::fill_n(tensor->data<double>(), tensor->size(), 0.0);
    }
  }
  // du: of row t.
  void Add(int64_t t, const std::vector<double>& du) const {
    const int64_t size = head_.hidden_size();
    for (int64_t v = 0; v < head_.vocab_size(); ++v) {
      if (out_.d_bias) out_.d_bias.data<double>()[v] += du[v];
      for (int64_t k = 0; k < size; ++k) {
        const double h = ReadDouble(head_.hidden, t * head_.hidden.strides[0] + k);
        const double w = ReadDouble(head_.weight, v * head_.weight.strides[0] + k);
        if (out_.d_hidden) out_.d_hidden.data<double>()[t * size + k] += du[v] * w;
        if (out_.d_weight) out_.d_weight.data<double>()[v * size + k] += du[v] * h;
      }
    }
  }

 private:
  const LinearHead& head_;
  const LinearHeadGradients& out_;
};

}  // namespace varlen
