#pragma once

#include <cstdint>

#include "core/dtype.h"

// The launches of the policy loss on a GPU; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's.
namespace varlen::loss {

struct DeviceArguments;

// Every pass, for log-probabilities of in.logprobs_dtype.
int LaunchLoss(int multiprocessors, const DeviceArguments& arguments, void* stream);

// gradient = d_loss * d_logprobs for n tokens, in `dtype`.
int LaunchScale(int multiprocessors, const float* d_loss, const float* d_logprobs, int64_t n,
                void* gradient, DType dtype, void* stream);

}  // namespace varlen::loss
