#include "core/cuda/pieces.h"
#include "ops/adamw/adamw.h"
#include "ops/adamw/device.h"

namespace varlen::adamw {

Status RunCuda(const Forward& p) {
  cuda::Launch& launch = cuda::Launch::Current();
  std::vector<DeviceParameter> parameters;
  for (size_t i = 0; i < p.gradients.size(); ++i) {
    const Tensor& parameter = p.parameters[i];
    const bool wide = p.masters.empty();
    parameters.push_back({p.gradients[i].data<float>(),
                          (wide ? parameter : p.masters[i]).data<float>(),
                          wide ? nullptr : parameter.address(), p.exp_avg[i].data<float>(),
                          p.exp_avg_sq[i].data<float>(), parameter.dtype});
  }
  const DevicePieces pieces = cuda::UploadPieces(launch, p.gradients);
  launch.Run<DeviceStep>(pieces.count,
                         {pieces, launch.Upload(parameters.data(), pieces.num_tensors),
                          cuda::Launch::DataOf<float>(p.gradient_norm),
                          DeviceFactorsOf(p.step, p.lr, p.beta1, p.beta2, p.eps, p.weight_decay,
                                          p.eps_before_correction)});
  return launch.status();
}

}  // namespace varlen::adamw
