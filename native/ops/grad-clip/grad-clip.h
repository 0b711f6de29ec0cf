#pragma once

#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// The norm of all gradients together, and their scaling when it is too large (Pascanu et al. 2013):
//
//   n = sqrt(sum of g^2 over all tensors);   g = g min(1, max_norm / (n + 1e-6))
//
// Squares are summed in float64 in a fixed order. With an infinite max_norm, or a norm that is not
// finite, the gradients stay as they are: the optimizer skips the step when it is given the norm.
namespace varlen::grad_clip {

struct Forward {
  static constexpr const char* kName = "gradClip";
  static constexpr bool kOnGpu = true;

  std::vector<Tensor> gradients;  // float32, updated
  double max_norm = 1;
  Tensor norm;  // [1] float32, before the scaling, out

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.Tensors("gradients", gradients, kFloat32, Access::kUpdate);
    visitor.Scalar("maxNorm", max_norm);
    visitor.Out("norm", norm, kFloat32, {"1"});
  }
  Status Validate() const;
};

// Picks the device of the norm. Called by the stream, after Validate().
Status Run(const Forward& params);

Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);

// In float64; the gradients and the norm are float64 tensors.
Status RunReference(const Forward& params);

}  // namespace varlen::grad_clip
