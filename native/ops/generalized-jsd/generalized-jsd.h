#pragma once

#include <cstdint>

#include "core/linear-logits.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Distillation by the generalized Jensen-Shannon divergence over the whole vocabulary (Agarwal et
// al. 2024, "On-policy distillation of language models"). With student q and teacher p, both
// softmax of cap(logitScale * logits) / temperature, and M = (1 - beta) q + beta p:
//
//   L[t]  = KL(p || q)                                    beta = 0
//           KL(q || p)                                    beta = 1
//           (1 - beta) KL(q || M) + beta KL(p || M)       between
//   loss  = sum_t c[t] L[t],  c = weight * rho * scale of the token's sequence (mask 1; else 0)
//   rho   = min(exp(clamp(logprobs - oldLogprobs, -20, 20)), isClip), a constant
//   dz[v] = q[v] (h[v] - sum_k q[k] h[k]);  h = ln q - ln p for beta = 1, (1 - beta) (ln q - ln m)
//           between; q - p for beta = 0
//
// 0 ln 0 = 0. A word that the student may choose and the teacher never does makes L infinite for
// beta = 1. Rows with mask 0 are never read; their outputs and gradients are 0.
namespace varlen::generalized_jsd {

inline constexpr TypeVar kTeacherFloats{"teacherDtype", kFloats.allowed};

struct Options {
  float beta = 0.5f;
  float temperature = 1;
  float softcap = 0;
  float logit_scale = 1;
  float teacher_floor = 0;  // of ln p; 0: off
  float loss_scale = 1;     // of every L: temperature^2 under temperatureScaling 't2'

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Scalar("beta", beta);
    v.Scalar("temperature", temperature);
    v.Scalar("softcap", softcap);
    v.Scalar("logitScale", logit_scale);
    v.Scalar("teacherFloor", teacher_floor);
    v.Scalar("lossScale", loss_scale);
  }
  LogitShape shape() const { return {temperature, softcap, logit_scale}; }
  Status Validate() const;
};

struct Forward {
  static constexpr const char* kName = "generalizedJsd";

  Tensor student, teacher;           // [totalTokens, vocabSize] logits
  Tensor loss_mask;                  // [totalTokens] uint8, absent: all 1
  Tensor weights;                    // [totalTokens] float32 >= 0, absent: all 1
  Tensor logprobs, old_logprobs;     // [totalTokens] float32, both or none
  HostOrTensor<int32_t> cu_seqlens;  // [numSeqs + 1]; with seq_scale
  HostOrTensor<float> seq_scale;     // [numSeqs]; absent: 1 / tokens that count
  Options options;
  float is_clip = 0;                // 0: rho = 1
  Tensor loss;                      // [] float32
  Tensor per_token;                 // [totalTokens] float32, L
  Tensor coefficients;              // [totalTokens] float32, c
  Tensor student_lse, teacher_lse;  // [totalTokens] float64
  Tensor inner;                     // [totalTokens] float64, sum_k q[k] h[k]
  Tensor tokens;                    // [1] float64: how many count

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.In("student", student, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("teacher", teacher, kTeacherFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    v.In("weights", weights, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("logprobs", logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("oldLogprobs", old_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.HostOrTensor("cuSeqlens", cu_seqlens, {"numSeqs+1"}, Need::kOptional);
    v.HostOrTensor("seqScale", seq_scale, {"numSeqs"}, Need::kOptional);
    options.Visit(v);
    v.Scalar("isClip", is_clip);
    v.Out("loss", loss, kFloat32, {});
    v.Out("perToken", per_token, kFloat32, {"totalTokens"});
    v.Out("coefficients", coefficients, kFloat32, {"totalTokens"});
    v.Out("studentLse", student_lse, kFloat64, {"totalTokens"});
    v.Out("teacherLse", teacher_lse, kFloat64, {"totalTokens"});
    v.Out("inner", inner, kFloat64, {"totalTokens"});
    v.Out("tokens", tokens, kFloat64, {"1"});
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "generalizedJsdBackward";

  Tensor d_loss;       // [] float32, absent: 0
  Tensor d_per_token;  // [totalTokens] float32, absent: 0
  Tensor student, teacher, loss_mask;
  Options options;
  Tensor coefficients, student_lse, teacher_lse, inner;  // of Forward
  Tensor d_student;  // [totalTokens, vocabSize], dtype of student

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.In("dLoss", d_loss, kFloat32, {}, kDense, Need::kOptional);
    v.In("dPerToken", d_per_token, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("student", student, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("teacher", teacher, kTeacherFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    options.Visit(v);
    v.In("coefficients", coefficients, kFloat32, {"totalTokens"});
    v.In("studentLse", student_lse, kFloat64, {"totalTokens"});
    v.In("teacherLse", teacher_lse, kFloat64, {"totalTokens"});
    v.In("inner", inner, kFloat64, {"totalTokens"});
    v.Out("dStudent", d_student, kFloats, {"totalTokens", "vocabSize"});
  }
  Status Validate() const { return options.Validate(); }
};

// c of every token and the number of those that count; refuses weights that are negative or NaN and
// offsets that do not fit.
Status WeighTokens(const Forward& params, float* coefficients, double* tokens);

// Picks the device of the student. Called by the stream, after Validate().
Status Run(const Forward& params);
Status Run(const Backward& params);

Status RunCpu(const Forward& params);
Status RunCpu(const Backward& params);
Status RunCuda(const Forward& params);
Status RunCuda(const Backward& params);

// Everything in float64, straight from the formulas; outputs are float64 tensors.
Status RunReference(const Forward& params);
Status RunReference(const Backward& params);

}  // namespace varlen::generalized_jsd
