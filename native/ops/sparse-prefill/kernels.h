#pragma once

#include "core/cuda/kernel.h"
#include "ops/sparse-prefill/forward-sm80.h"
#include "ops/sparse-prefill/join-device.h"

namespace varlen::sparse_prefill {

// One list per .cu file.
using JoinKernels = cuda::KernelList<JoinSlots<bfloat16>, JoinSlots<half>, MergeStates<float>,
                                     MergeStates<bfloat16>, MergeStates<half>>;

template <class T>
using ForwardSm80Kernels =
    cuda::KernelList<ForwardSm80<T, 64, false>, ForwardSm80<T, 96, false>,
                     ForwardSm80<T, 128, false>, ForwardSm80<T, 192, false>,
                     ForwardSm80<T, 256, false>, ForwardSm80<T, 64, true>, ForwardSm80<T, 96, true>,
                     ForwardSm80<T, 128, true>, ForwardSm80<T, 192, true>>;

}  // namespace varlen::sparse_prefill
