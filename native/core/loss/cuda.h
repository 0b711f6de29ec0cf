#pragma once

#include "core/cuda/launch.h"
#include "core/loss/batch.h"
#include "core/loss/loss.h"

// The policy loss on a GPU, as every op that ends in it calls it.
namespace varlen::loss {

// The batch's arrays in device memory: those of the host uploaded, offsets that came as a tensor
// made safe and checked when the task is done. Log-probabilities and entropies are the op's to add.
Inputs UploadInputs(cuda::Launch& launch, const Batch& batch, const Config& config,
                    int64_t num_tokens);

// Evaluate() with every pointer in device memory; what is wrong with the values is told when the
// task is done.
void EvaluateOnGpu(cuda::Launch& launch, const Config& config, const Inputs& in,
                   const Outputs& out);

// gradient = d_loss * d_logprobs, contiguous tensors of one length.
Status ScaleOnGpu(const Tensor& d_loss, const Tensor& d_logprobs, const Tensor& gradient);

}  // namespace varlen::loss
