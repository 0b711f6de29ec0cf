#include "core/cuda/elements.h"
#include "ops/sampling/device.h"
#include "ops/sampling/sampling.h"

namespace varlen::sampling {

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.logits, [&]<class T>(cuda::Launch& launch) {
    const int64_t num_rows = p.logits.shape[0], vocab_size = p.logits.shape[1];
    auto* tokens = p.tokens.data<int32_t>();
    launch.Run<DeviceSample<T>>(
        num_rows,
        {p.logits.data<T>(), launch.DataOf(p.random), num_rows, vocab_size, p.temperature, p.top_k,
         p.top_p, p.min_p, tokens, p.logprobs.data<float>(), p.policy_logprobs.data<float>(),
         p.kept_log_mass.data<float>(), cuda::AlignedRows(vocab_size, p.logits)});
    auto* found = launch.Scratch<double>(2);
    launch.Run<DeviceBadRows>(1, {tokens, num_rows, found});
    launch.OnDone([found = launch.ReadBack<double>(found, 2)] {
      return found[0] == 0 ? Status{} : BadRow(static_cast<int64_t>(found[1]));
    });
  });
}

}  // namespace varlen::sampling
