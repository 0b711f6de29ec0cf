#include "core/cuda/column-sums.h"
#include "core/cuda/elements.h"
#include "ops/rms-norm/device.h"
#include "ops/rms-norm/rms-norm.h"

namespace varlen::rms_norm {

using cuda::Launch;

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.weight, [&]<class T>(Launch& launch) {
    const int64_t num_rows = p.scale.size(), hidden = p.weight.shape[0];
    launch.Run<DeviceNormalize<T>>(
        num_rows,
        {p.x.data<T>(), Launch::DataOf<T>(p.residual), p.weight.data<T>(), p.eps, p.weight_offset,
         num_rows, hidden, p.out.data<T>(), p.scale.data<float>(), Launch::DataOf<T>(p.sum),
         cuda::AlignedRows(hidden, p.x, p.residual, p.weight, p.out, p.sum)});
  });
}

Status RunCuda(const Backward& p) {
  return cuda::LaunchFor(p.weight, [&]<class T>(Launch& launch) {
    const int64_t num_rows = p.scale.size(), hidden = p.weight.shape[0];
    const bool vectors = cuda::AlignedRows(hidden, p.d_out, p.d_sum, p.sum, p.weight, p.dx);
    const T* d_out = p.d_out.data<T>();
    const T* sum = p.sum.data<T>();
    const auto* scale = p.scale.data<float>();
    launch.Run<DeviceNormGradients<T>>(
        num_rows, {d_out, Launch::DataOf<T>(p.d_sum), sum, p.weight.data<T>(), scale,
                   p.weight_offset, num_rows, hidden, p.dx.data<T>(), vectors});
    cuda::SumColumns(launch, WeightTerm<T>{d_out, sum, scale, hidden, vectors}, num_rows, hidden,
                     p.d_weight.data<float>());
  });
}

}  // namespace varlen::rms_norm
