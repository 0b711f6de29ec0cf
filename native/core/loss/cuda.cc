#include "core/loss/cuda.h"

#include "core/cuda/offsets.h"
#include "core/dispatch.h"
#include "core/loss/kernels.h"

namespace varlen::loss {
namespace {

template <class T>
void LaunchLoss(cuda::Launch& launch, const DeviceArguments& arguments) {
  LaunchPasses<T>(arguments, true, [&]<class Kernel>(int64_t items, const DeviceArguments& params) {
    constexpr int64_t kWarps = Kernel::kThreads / simt::kWarpSize;
    launch.Run<Kernel>((items + kWarps - 1) / kWarps, params);
    return launch.ok();
  });
}

Problem ProblemOf(const double (&found)[2]) {
  Problem problem;
  problem.count = static_cast<int64_t>(found[0]);
  if (problem.count > 0) problem.first = static_cast<int64_t>(found[1]);
  return problem;
}

}  // namespace

Inputs UploadInputs(cuda::Launch& launch, const Batch& batch, const Config& config,
                    int64_t num_tokens) {
  Inputs in = batch.ToInputs(num_tokens);
  in.cu_seqlens = Trust(launch, batch.cu_seqlens, {}, num_tokens).cu;
  in.advantages = launch.DataOf(batch.advantages);
  in.token_weights = launch.DataOf(batch.token_weights);
  in.seq_scale = launch.DataOf(batch.seq_scale);
  if (!batch.cu_seqlens.on_host()) {
    launch.OnDone([batch = batch, config, num_tokens,
                   cu = cuda::ReadBack(launch, batch.cu_seqlens)]() mutable {
      batch.cu_seqlens = cu.OnHost();
      batch.token_weights = {};  // of tensors; the values are the kernels' to judge
      return batch.Validate(config, num_tokens);
    });
  }
  return in;
}

void EvaluateOnGpu(cuda::Launch& launch, const Config& config, const Inputs& in,
                   const Outputs& out) {
  const int64_t slots = NumSlots(in.num_tokens, in.num_seqs);
  DeviceArguments p{};
  p.config = config;
  p.in = in;
  p.out = out;
  if (NeedsFirstPass(config)) {
    p.first = launch.Scratch<double>(slots * kFirstDoubles);
    p.first_sums = launch.Scratch<double>(in.num_seqs * kFirstDoubles);
  }
  p.partials = launch.Scratch<double>(slots * kRowDoubles);
  p.rows = launch.Scratch<double>(in.num_seqs * kRowDoubles);
  p.sequences = launch.Scratch<SequenceState>(in.num_seqs);
  p.inverse_mean = launch.Scratch<float>(1);
  p.report = launch.Scratch<DeviceReport>(1);
  switch (in.logprobs_dtype) {
    case DType::kBF16:
      LaunchLoss<bfloat16>(launch, p);
      break;
    case DType::kF16:
      LaunchLoss<half>(launch, p);
      break;
    default:
      LaunchLoss<float>(launch, p);
  }
  launch.OnDone([config, report = launch.ReadBack<DeviceReport>(p.report, 1)] {
    const auto& found = report->problems;
    return Judge(
        config,
        {ProblemOf(found[0]), ProblemOf(found[1]), ProblemOf(found[2]), ProblemOf(found[3])},
        report->hash_low, report->hash_high);
  });
}

Status ScaleOnGpu(const Tensor& d_loss, const Tensor& d_logprobs, const Tensor& gradient) {
  cuda::Launch& launch = cuda::Launch::Current();
  const int64_t n = gradient.size();
  if (n == 0) return {};
  return DispatchDType<float, bfloat16, half>(gradient.dtype, "logprobs", [&]<class T>() {
    using Kernel = DeviceScale<T>;
    launch.Run<Kernel>((n + Kernel::kThreads - 1) / Kernel::kThreads,
                       {d_loss.data<float>(), d_logprobs.data<float>(), gradient.data<T>(), n});
    return launch.status();
  });
}

}  // namespace varlen::loss
