#pragma once

#include <cstdint>

#include "core/jsd.h"
#include "core/linear-head.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The generalized Jensen-Shannon divergence (core/jsd.h) of a student from a teacher, both given by
// hidden states and a head:
//
//   z[t, v] = cap(logitScale * (hidden[t] . weight[v] + bias[v])) / temperature, on both sides
//
// On the CPU logits exist a tile at a time (core/linear-logits.h); on a GPU those of a chunk of
// tokens do (passes.h). Over the whole vocabulary two passes make the loss, as the mixture needs
// both log-sum-exps first, and one more the gradient; over the largest words of one side, or over
// stored log-probabilities, each side takes one pass. Gradients go to the student's head alone.
namespace varlen::fused_linear_jsd {

// The teacher's head, by its own names; absent with stored log-probabilities.
struct TeacherHead {
  LinearHead head;

  template <class Visitor>
  void Visit(Visitor& v) {
    constexpr Need kMaybe = Need::kOptional;
    v.In("teacherHidden", head.hidden, kTeacherFloats, {"totalTokens", "teacherHiddenSize"},
         Layout::kRows, kMaybe);
    v.In("teacherWeight", head.weight, kTeacherFloats, {"vocabSize", "teacherHiddenSize"},
         Layout::kRows, kMaybe);
    v.In("teacherBias", head.bias, kTeacherFloats, {"vocabSize"}, Layout::kContiguous, kMaybe);
  }
  explicit operator bool() const { return static_cast<bool>(head.hidden); }
  Status Validate() const;
};

struct Forward {
  static constexpr const char* kName = "fusedLinearJsd";
  static constexpr bool kOnGpu = true;

  LinearHead student;
  TeacherHead teacher;
  JsdWords words;
  JsdTokens tokens;
  JsdOptions options;
  JsdOutputs out;

  template <class Visitor>
  void Visit(Visitor& v) {
    student.Visit(v);
    teacher.Visit(v);
    words.Visit(v);
    tokens.Visit(v);
    options.Visit(v);
    out.Visit(v, words.some);
  }
  Status Validate() const;
};

struct Backward {
  static constexpr const char* kName = "fusedLinearJsdBackward";
  static constexpr bool kOnGpu = true;

  LinearHead student;
  TeacherHead teacher;  // over the whole vocabulary only
  JsdUpstream upstream;
  JsdOptions options;
  LinearHeadGradients gradients;

  template <class Visitor>
  void Visit(Visitor& v) {
    student.Visit(v);
    teacher.Visit(v);
    upstream.Visit(v);
    options.Visit(v);
    gradients.Visit(v);
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

}  // namespace varlen::fused_linear_jsd
