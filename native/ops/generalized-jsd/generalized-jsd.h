#pragma once

#include <cstdint>

#include "core/jsd.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The generalized Jensen-Shannon divergence (core/jsd.h) of a student's logits from a teacher's:
//
//   z[t, v] = cap(logitScale * logits[t, v]) / temperature, on both sides
//
// over the whole vocabulary, over the largest words of one side, or over stored log-probabilities
// of a teacher that is not there.
namespace varlen::generalized_jsd {

struct Forward {
  static constexpr const char* kName = "generalizedJsd";
  static constexpr bool kOnGpu = true;

  Tensor student;  // [totalTokens, vocabSize] logits
  Tensor teacher;  // the same of the teacher; absent with stored log-probabilities
  JsdWords words;
  JsdTokens tokens;
  JsdOptions options;
  JsdOutputs out;

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("student", student, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("teacher", teacher, kTeacherFloats, {"totalTokens", "vocabSize"}, Layout::kRows,
         Need::kOptional);
    words.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    out.Visit(v, words.some);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "generalizedJsdBackward";
  static constexpr bool kOnGpu = true;

  Tensor student, teacher;  // the teacher over the whole vocabulary only
  JsdUpstream upstream;
  JsdOptions options;
  Tensor d_student;  // [totalTokens, vocabSize], dtype of student

  template <class Visitor>
  void Visit(Visitor& v) {
    v.In("student", student, kFloats, {"totalTokens", "vocabSize"}, Layout::kRows);
    v.In("teacher", teacher, kTeacherFloats, {"totalTokens", "vocabSize"}, Layout::kRows,
         Need::kOptional);
    upstream.Visit(v);
    options.Visit(v);
    v.Out("dStudent", d_student, kFloats, {"totalTokens", "vocabSize"});
  }
  Status Validate() const { return options.Validate(); }
};

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
