#pragma once

#include <cstdint>
#include <vector>

#include "core/linear-logits.h"
#include "core/tensor.h"
#include "core/visit.h"

namespace varlen {

// The tensors of a linear head, as the fused losses take them.
struct LinearHead {
  Tensor hidden;  // [totalTokens, hiddenSize]
  Tensor weight;  // [vocabSize, hiddenSize], dtype of hidden
  Tensor bias;    // [vocabSize], dtype of hidden, optional

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("hidden", hidden, kFloats, {"totalTokens", "hiddenSize"}, Layout::kRows);
    v.In("weight", weight, kFloats, {"vocabSize", "hiddenSize"}, Layout::kRows);
    v.In("bias", bias, kFloats, {"vocabSize"}, Layout::kContiguous, Need::kOptional);
  }
  int64_t total_tokens() const { return hidden.shape[0]; }
  int64_t vocab_size() const { return weight.shape[0]; }
  int64_t hidden_size() const { return weight.shape[1]; }

  // `rows` must outlive the result.
  LinearLogits Logits(const LogitShape& shape, const std::vector<int32_t>& rows) const {
    return {hidden.dtype,
            hidden.address(),
            hidden.strides[0],
            rows.data(),
            static_cast<int64_t>(rows.size()),
            weight.address(),
            weight.strides[0],
            bias.address(),
            vocab_size(),
            hidden_size(),
            shape};
  }
};

// Its gradients, each only if wanted.
struct LinearHeadGradients {
  bool want_hidden = true, want_weight = true, want_bias = true;
  Tensor d_hidden;  // [totalTokens, hiddenSize], dtype of hidden; 0 in rows that do not count
  Tensor d_weight;  // [vocabSize, hiddenSize] float32
  Tensor d_bias;    // [vocabSize] float32

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Flag("wantHidden", want_hidden);
    v.Flag("wantWeight", want_weight);
    v.Flag("wantBias", want_bias);
    v.Out("dHidden", d_hidden, kFloats, {"totalTokens", "hiddenSize"}, want_hidden);
    v.Out("dWeight", d_weight, kFloat32, {"vocabSize", "hiddenSize"}, want_weight);
    v.Out("dBias", d_bias, kFloat32, {"vocabSize"}, want_bias);
  }
  // Where the core writes. Clears the rows of dHidden that it leaves alone.
  Status Prepare(const std::vector<int32_t>& rows, LinearGradients* out) const {
    *out = {};
    if (want_weight) out->d_weight = d_weight.data<float>();
    if (want_bias) out->d_bias = d_bias.data<float>();
    if (!want_hidden) return {};
    out->d_hidden = d_hidden.address();
    out->d_hidden_stride = d_hidden.strides[0];
    return ClearOtherRows(d_hidden, rows);
  }
};

}  // namespace varlen
