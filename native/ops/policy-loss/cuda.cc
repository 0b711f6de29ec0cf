#include "core/loss/cuda.h"

#include "ops/policy-loss/policy-loss.h"

// The CUDA implementation: core/loss/cuda.cc does both passes.
namespace varlen::policy_loss {

Status RunCuda(const Forward& p) {
  using cuda::Launch;
  Launch& launch = Launch::Current();
  loss::Inputs in = loss::UploadInputs(launch, p.batch, p.config, p.logprobs.shape[0]);
  in.logprobs = p.logprobs.address();
  in.logprobs_dtype = p.logprobs.dtype;
  in.entropies = Launch::DataOf<float>(p.entropies);
  loss::EvaluateOnGpu(launch, p.config, in, loss::OutputsOf(p));
  return launch.status();
}

Status RunCuda(const Backward& p) { return loss::ScaleOnGpu(p.d_loss, p.d_logprobs, p.gradient); }

}  // namespace varlen::policy_loss
