#include "core/cuda/elements.h"
#include "core/cuda/indices.h"
#include "core/cuda/token-chains.h"
#include "ops/embedding/device.h"
#include "ops/embedding/embedding.h"

namespace varlen::embedding {

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.weight, [&]<class T>(cuda::Launch& launch) {
    using Kernel = DeviceLookup<T>;
    const int64_t vocab_size = p.weight.shape[0], hidden = p.weight.shape[1];
    launch.Run<Kernel>((p.ids.size() + Kernel::kWarps - 1) / Kernel::kWarps,
                       {p.weight.data<T>(), launch.DataOf(p.ids), p.ids.size(), vocab_size, hidden,
                        p.out.data<T>(), cuda::AlignedRows(hidden, p.weight, p.out)});
    cuda::CheckIndicesWhenDone(launch, "ids", p.ids, vocab_size);
  });
}

Status RunCuda(const Backward& p) {
  return cuda::LaunchFor(p.d_out, [&]<class T>(cuda::Launch& launch) {
    const int64_t vocab_size = p.weight.shape[0], hidden = p.weight.shape[1];
    const cuda::TokenChains chains =
        cuda::ChainTokens(launch, launch.DataOf(p.ids), p.ids.size(), vocab_size);
    launch.Run<DeviceWordGradients<T>>(
        vocab_size,
        {p.d_out.data<T>(), chains.head, chains.next, vocab_size, hidden, p.d_weight.data<float>(),
         cuda::AlignedRows(hidden, p.d_out), cuda::AlignedRows(hidden, p.d_weight)});
    cuda::CheckIndicesWhenDone(launch, "ids", p.ids, vocab_size);
  });
}

}  // namespace varlen::embedding
