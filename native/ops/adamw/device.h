#pragma once

#include <cmath>

#include "core/cuda/kernel.h"
#include "core/device-pieces.h"
#include "core/device-reduce.h"
#include "core/dtype.h"

// The step on a GPU: one launch for all tensors. Every pointer is device memory.
namespace varlen::adamw {

// The factors of one step, the same for every element.
struct DeviceFactors {
  float beta1, rest1, beta2, rest2;
  float decay;  // 1 - lr wd
  float rate;   // what m / denominator is multiplied by
  float root;   // sqrt(v) is multiplied by it before eps is added
  float eps;
  bool decay_last;
};

inline DeviceFactors DeviceFactorsOf(int64_t step, double lr, double beta1, double beta2,
                                     double eps, double weight_decay, bool eps_before_correction) {
  const auto k = static_cast<double>(step);
  const double c1 = 1 - std::pow(beta1, k), c2 = 1 - std::pow(beta2, k);
  return {static_cast<float>(beta1),
          static_cast<float>(1 - beta1),
          static_cast<float>(beta2),
          static_cast<float>(1 - beta2),
          static_cast<float>(1 - lr * weight_decay),
          static_cast<float>(eps_before_correction ? lr * std::sqrt(c2) / c1 : lr / c1),
          static_cast<float>(eps_before_correction ? 1 : 1 / std::sqrt(c2)),
          static_cast<float>(eps),
          eps_before_correction};
}

struct DeviceParameter {
  const float* gradient;
  float* value;   // the float32 parameter, or the master of a 16-bit one
  void* rounded;  // the 16-bit parameter; null for float32
  float* exp_avg;
  float* exp_avg_sq;
  DType dtype;  // of rounded
};

struct DeviceStep {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DevicePieces pieces;
    const DeviceParameter* parameters;  // [pieces.num_tensors]
    const float* gradient_norm;         // [1] or null; not finite: nothing changes
    DeviceFactors factors;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    if (p.gradient_norm != nullptr) {
      const float norm = simt::Load(p.gradient_norm);
      if (norm - norm != 0) return;
    }
    const DeviceFactors& f = p.factors;
    for (int64_t id = simt::BlockIndex(); id < p.pieces.count; id += simt::GridSize()) {
      const DevicePiece piece = p.pieces.At(id);
      const DeviceParameter* to = p.parameters + piece.tensor;
      const float* gradients = simt::Load(&to->gradient);
      float *values = simt::Load(&to->value), *m = simt::Load(&to->exp_avg),
            *v = simt::Load(&to->exp_avg_sq);
      void* rounded = simt::Load(&to->rounded);
      const bool bfloat = rounded != nullptr && simt::Load(&to->dtype) == DType::kBF16;
      for (int64_t i = piece.begin + simt::ThreadIndex(); i < piece.end; i += kThreads) {
        const float g = simt::Load(gradients + i);
        const float first = g * f.rest1 + simt::Load(m + i) * f.beta1;
        const float second = g * g * f.rest2 + simt::Load(v + i) * f.beta2;
        const float update = first * f.rate / (std::sqrt(second) * f.root + f.eps);
        const float before = simt::Load(values + i);
        const float after = f.decay_last ? (before - update) * f.decay : before * f.decay - update;
        simt::Store(m + i, first);
        simt::Store(v + i, second);
        simt::Store(values + i, after);
        if (rounded == nullptr) continue;
        if (bfloat) {
          simt::Store(static_cast<bfloat16*>(rounded) + i, simt::FromFloat<bfloat16>(after));
        } else {
          simt::Store(static_cast<half*>(rounded) + i, simt::FromFloat<half>(after));
        }
      }
    }
  }
};

using Kernels = cuda::KernelList<DeviceStep>;

}  // namespace varlen::adamw
