#include "core/cuda/elements.h"
#include "ops/sparse-prefill/merge-backward-device.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// The CUDA implementation of a merge's gradient: one launch.
namespace varlen::sparse_prefill {

Status RunCuda(const MergeBackward& p) {
  return cuda::LaunchFor(p.d_out, [&]<class T>(cuda::Launch& launch) {
    using Kernel = DeviceMergeGradients<T>;
    const int64_t rows = p.d_out.shape[0], heads = p.d_out.shape[1], dim = p.d_out.shape[2];
    bool vectors = cuda::AlignedRows(dim, p.d_out, p.out1, p.out2, p.d_out1, p.d_out2);
    const auto rows_of = [&](const Tensor& t) {
      vectors = vectors && t.strides[0] * sizeof(T) % 16 == 0 && t.strides[1] * sizeof(T) % 16 == 0;
      return typename Kernel::Rows{t.data<T>(), t.strides[0], t.strides[1]};
    };
    const auto d_out = rows_of(p.d_out), out1 = rows_of(p.out1), out2 = rows_of(p.out2);
    launch.Run<Kernel>(
        (rows * heads + Kernel::kWarps - 1) / Kernel::kWarps,
        {d_out, out1, out2, p.lse1.data<float>(), p.lse2.data<float>(),
         cuda::Launch::DataOf<float>(p.d_lse), rows, heads, dim, p.d_out1.data<T>(),
         p.d_out2.data<T>(), p.d_lse1.data<float>(), p.d_lse2.data<float>(), vectors});
  });
}

}  // namespace varlen::sparse_prefill
