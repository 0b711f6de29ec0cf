#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// One step of AdamW (Loshchilov and Hutter 2019) on a list of parameters, in float32 and in place.
// With k the number of the step, from 1, c1 = 1 - beta1^k and c2 = 1 - beta2^k:
//
//   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
//   p = p (1 - lr wd) - lr / c1 * m / (sqrt(v / c2) + eps)                 as PyTorch does it
//   p = p - lr sqrt(c2) / c1 * m / (sqrt(v) + eps);  p = p (1 - lr wd)     with
//   eps_before_correction
//
// The second form is that of the Hugging Face and Fira references: the two differ where sqrt(v) is
// near eps. A parameter in a 16-bit type has a float32 master that is updated in its place and then
// rounded to it, to nearest even. When `gradient_norm` is given and is not finite, nothing changes.
namespace varlen::adamw {

struct Forward {
  static constexpr const char* kName = "adamw";
  static constexpr bool kOnGpu = true;

  std::vector<Tensor> gradients;   // float32
  Tensor gradient_norm;            // [1] float32, optional
  std::vector<Tensor> parameters;  // shapes of the gradients, updated
  std::vector<Tensor> masters;     // float32, for 16-bit parameters; else empty, updated
  std::vector<Tensor> exp_avg;     // m, float32, updated
  std::vector<Tensor> exp_avg_sq;  // v, float32, updated
  int64_t step = 1;                // k
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool eps_before_correction = false;

  template <class Visitor>
  void Visit(Visitor& visitor) {
    visitor.Tensors("gradients", gradients, kFloat32, Access::kRead);
    visitor.In("gradientNorm", gradient_norm, kFloat32, {"1"}, Layout::kContiguous,
               Need::kOptional);
    visitor.Tensors("parameters", parameters, kFloats, Access::kUpdate);
    visitor.Tensors("masters", masters, kFloat32, Access::kUpdate);
    visitor.Tensors("expAvg", exp_avg, kFloat32, Access::kUpdate);
    visitor.Tensors("expAvgSq", exp_avg_sq, kFloat32, Access::kUpdate);
    visitor.Scalar("step", step);
    visitor.Scalar("lr", lr);
    visitor.Scalar("beta1", beta1);
    visitor.Scalar("beta2", beta2);
    visitor.Scalar("eps", eps);
    visitor.Scalar("weightDecay", weight_decay);
    visitor.Flag("epsBeforeCorrection", eps_before_correction);
  }
  Status Validate() const;
};

// Picks the device of the first gradient. Called by the stream, after Validate().
Status Run(const Forward& params);

Status RunCpu(const Forward& params);
Status RunCuda(const Forward& params);

// In float64; what is updated are float64 tensors.
Status RunReference(const Forward& params);

}  // namespace varlen::adamw
