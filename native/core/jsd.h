#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/linear-logits.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// Distillation by the generalized Jensen-Shannon divergence (Agarwal et al. 2024, "On-policy
// distillation of language models"): what the op on logits and the op on hidden states share. With
// student q and teacher p, both softmax of z of linear-logits.h, and M = (1 - beta) q + beta p:
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
//
// Over some words K of each row instead of all, with probabilities of the whole vocabulary:
//   tail bucket   one more bin holds 1 - sum_K on either side; dz of every other word is that of
//                 the bin, q[v] (h[tail] - sum)
//   renormalized  both sides are divided by their sum over K; dz is 0 elsewhere
//   sampled word  beta = 1 and one word y: L = sg(ln q[y] - ln p[y]) ln q[y] (as SDPO has it)
namespace varlen {

inline constexpr TypeVar kTeacherFloats{"teacherDtype", kFloats.allowed};

struct JsdOptions {
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

// Which tokens count and for how much.
struct JsdTokens {
  Tensor loss_mask;                  // [totalTokens] uint8, absent: all 1
  Tensor weights;                    // [totalTokens] float32 >= 0, absent: all 1
  Tensor logprobs, old_logprobs;     // [totalTokens] float32, both or none
  HostOrTensor<int32_t> cu_seqlens;  // [numSeqs + 1]; with seq_scale
  HostOrTensor<float> seq_scale;     // [numSeqs]; absent: 1 / tokens that count
  float is_clip = 0;                 // 0: rho = 1

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, Need::kOptional);
    v.In("weights", weights, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("logprobs", logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.In("oldLogprobs", old_logprobs, kFloat32, {"totalTokens"}, kDense, Need::kOptional);
    v.HostOrTensor("cuSeqlens", cu_seqlens, {"numSeqs+1"}, Need::kOptional);
    v.HostOrTensor("seqScale", seq_scale, {"numSeqs"}, Need::kOptional);
    v.Scalar("isClip", is_clip);
  }
  Status Validate(int64_t total_tokens) const;
  bool Counts(int64_t row) const { return !loss_mask || loss_mask.data<uint8_t>()[row] != 0; }
  // c of every token and the number of those that count; refuses weights that are negative or NaN
  // and offsets that do not fit.
  Status Weigh(int64_t total_tokens, float* coefficients, double* tokens) const;
};

// The words of each row that the divergence is over, when not all.
struct JsdWords {
  bool some = false;        // false: the whole vocabulary
  Tensor teacher_logprobs;  // [totalTokens, numWords], stored ones, of the whole vocabulary, at
  Tensor ids;               // [totalTokens, numWords] int32; absent: the largest of one side
  bool by_teacher = false;  // whose
  bool tail_bucket = true;  // false: renormalized
  bool sampled = false;     // with ids, one per row

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    v.Flag("someWords", some);
    v.In("teacherLogprobs", teacher_logprobs, kTeacherFloats, {"totalTokens", "numWords"}, kDense,
         Need::kOptional);
    v.In("ids", ids, kInt32, {"totalTokens", "numWords"}, kDense, Need::kOptional);
    v.Flag("byTeacher", by_teacher);
    v.Flag("tailBucket", tail_bucket);
    v.Flag("sampled", sampled);
  }
  bool stored() const { return static_cast<bool>(teacher_logprobs); }
  // has_teacher: the op was given the teacher's logits, or what makes them.
  Status Validate(const JsdOptions& options, int64_t vocab_size, bool has_teacher) const;
};

struct JsdOutputs {
  Tensor loss;                      // [] float32
  Tensor per_token;                 // [totalTokens] float32, L
  Tensor coefficients;              // [totalTokens] float32, c
  Tensor student_lse, teacher_lse;  // [totalTokens] float64; the teacher's over all words only
  Tensor inner;                     // [totalTokens] float64, sum_k q[k] h[k]; over all words only
  Tensor tokens;                    // [1] float64: how many count
  // Over some words: dz of L is slopes[i] at words[i], and q[v] tail elsewhere.
  Tensor words;   // [totalTokens, numWords] int32, ascending; the caller brings it to say numWords
  Tensor slopes;  // [totalTokens, numWords] float32
  Tensor tail;    // [totalTokens] float32

  template <class Visitor>
  void Visit(Visitor& v, bool some) {
    v.Out("loss", loss, kFloat32, {});
    v.Out("perToken", per_token, kFloat32, {"totalTokens"});
    v.Out("coefficients", coefficients, kFloat32, {"totalTokens"});
    v.Out("studentLse", student_lse, kFloat64, {"totalTokens"});
    v.Out("teacherLse", teacher_lse, kFloat64, {"totalTokens"}, !some);
    v.Out("inner", inner, kFloat64, {"totalTokens"}, !some);
    v.Out("tokens", tokens, kFloat64, {"1"});
    v.Out("words", words, kInt32, {"totalTokens", "numWords"}, some);
    v.Out("slopes", slopes, kFloat32, {"totalTokens", "numWords"}, some);
    v.Out("tail", tail, kFloat32, {"totalTokens"}, some);
  }
  // 0 in the rows that do not count.
  void Clear() const;
  // Adds up the tokens, once per_token and coefficients are there.
  void WriteLoss() const;
};

// Gradients that come back, and what the forward pass saved.
struct JsdUpstream {
  Tensor d_loss;       // [] float32, absent: 0
  Tensor d_per_token;  // [totalTokens] float32, absent: 0
  Tensor loss_mask;
  Tensor coefficients, student_lse;  // of the forward pass, like the rest
  Tensor teacher_lse, inner;         // over all words
  Tensor words, slopes, tail;        // over some

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Layout kDense = Layout::kContiguous;
    constexpr Need kMaybe = Need::kOptional;
    v.In("dLoss", d_loss, kFloat32, {}, kDense, kMaybe);
    v.In("dPerToken", d_per_token, kFloat32, {"totalTokens"}, kDense, kMaybe);
    v.In("lossMask", loss_mask, kUint8, {"totalTokens"}, kDense, kMaybe);
    v.In("coefficients", coefficients, kFloat32, {"totalTokens"});
    v.In("studentLse", student_lse, kFloat64, {"totalTokens"});
    v.In("teacherLse", teacher_lse, kFloat64, {"totalTokens"}, kDense, kMaybe);
    v.In("inner", inner, kFloat64, {"totalTokens"}, kDense, kMaybe);
    v.In("words", words, kInt32, {"totalTokens", "numWords"}, kDense, kMaybe);
    v.In("slopes", slopes, kFloat32, {"totalTokens", "numWords"}, kDense, kMaybe);
    v.In("tail", tail, kFloat32, {"totalTokens"}, kDense, kMaybe);
  }
  bool some_words() const { return static_cast<bool>(words); }
  // What dz of L is multiplied by, in a row that counts.
  float Factor(int64_t row, const JsdOptions& options) const {
    float factor = d_loss ? *d_loss.data<float>() * coefficients.data<float>()[row] : 0.0f;
    if (d_per_token) factor += d_per_token.data<float>()[row];
    return factor * options.loss_scale;
  }
};

// The rows with mask 1, in order.
std::vector<int32_t> CountedRows(const Tensor& loss_mask, int64_t total_tokens);

// Statistics of the counted rows of one side: lse, and logits of words.
using JsdSide = std::function<Status(double* lse, const RowWords& words)>;

// The divergence over some words: fills per_token, student_lse, words, slopes and tail. `teacher`
// is not asked when its log-probabilities are stored. Refuses ids outside the vocabulary and
// repeated ones.
Status DivergeOverWords(const JsdOptions& options, const JsdWords& form,
                        const std::vector<int32_t>& rows, int64_t vocab_size,
                        const JsdSide& student, const JsdSide& teacher, const JsdOutputs& out);

// Its gradient as coefficients of the counted rows, for ComputeLinearGradients or
// ComputeLogitGradients.
class JsdWordGradients {
 public:
  JsdWordGradients(const JsdOptions& options, const JsdUpstream& upstream,
                   const std::vector<int32_t>& rows);
  LogitGradients gradients() const;

 private:
  int64_t per_row_;
  std::vector<double> lse_;
  std::vector<DenseGradient> dense_;
  std::vector<int32_t> words_;
  std::vector<float> sparse_;
};

}  // namespace varlen
