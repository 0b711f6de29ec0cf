#include "core/cuda/pieces.h"
#include "ops/grad-clip/device.h"
#include "ops/grad-clip/grad-clip.h"

namespace varlen::grad_clip {

Status RunCuda(const Forward& p) {
  cuda::Launch& launch = cuda::Launch::Current();
  std::vector<float*> addresses;
  for (const Tensor& gradient : p.gradients) addresses.push_back(gradient.data<float>());
  const DevicePieces pieces = cuda::UploadPieces(launch, p.gradients);
  float* const* gradients = launch.Upload(addresses.data(), pieces.num_tensors);
  auto* squares = launch.Scratch<double>(pieces.count);
  auto* factor = launch.Scratch<float>(1);
  launch.Run<DeviceSquares>(pieces.count, {pieces, gradients, squares});
  launch.Run<DeviceNorm>(1, {squares, pieces.count, p.max_norm, p.norm.data<float>(), factor});
  launch.Run<DeviceClip>(pieces.count, {pieces, gradients, factor});
  return launch.status();
}

}  // namespace varlen::grad_clip
