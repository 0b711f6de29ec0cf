#pragma once

#include "core/dtype.h"
#include "ops/varlen-attention/device-params.h"

// The launches of this op's CUDA kernels; each returns a cudaError_t. `stream` is a cudaStream_t,
// `multiprocessors` the device's.
namespace varlen::varlen_attention {

int LaunchForwardSm80(int multiprocessors, const ForwardArguments<bfloat16>& params, void* stream);
int LaunchForwardSm80(int multiprocessors, const ForwardArguments<half>& params, void* stream);

}  // namespace varlen::varlen_attention
