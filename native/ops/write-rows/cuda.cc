#include "core/cuda/elements.h"
#include "core/cuda/indices.h"
#include "core/cuda/token-chains.h"
#include "ops/write-rows/device.h"
#include "ops/write-rows/write-rows.h"

namespace varlen::write_rows {

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.values, [&]<class T>(cuda::Launch& launch) {
    using Kernel = DeviceWriteRows<T>;
    const Tensor& target = p.target[0];
    const int64_t num_rows = target.shape[0], width = target.shape[1];
    const int64_t num_tokens = p.rows.size();
    const int32_t* rows = launch.DataOf(p.rows);
    const cuda::TokenChains chains = cuda::ChainTokens(launch, rows, num_tokens, num_rows);
    launch.Run<Kernel>((num_tokens + Kernel::kWarps - 1) / Kernel::kWarps,
                       {p.values.data<T>(), rows, chains.next, num_tokens, num_rows, width,
                        target.data<T>(), cuda::AlignedRows(width, p.values, target)});
    cuda::CheckIndicesWhenDone(launch, "rows", p.rows, num_rows);
  });
}

}  // namespace varlen::write_rows
