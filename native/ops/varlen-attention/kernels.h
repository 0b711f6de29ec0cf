#pragma once

#include "core/cuda/kernel.h"
#include "ops/varlen-attention/backward-sm80.h"
#include "ops/varlen-attention/backward-sm90a.h"
#include "ops/varlen-attention/backward-statistics.h"
#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/forward-sm90a.h"
#include "ops/varlen-attention/prepare.h"
#include "ops/varlen-attention/split-combine.h"

namespace varlen::varlen_attention {

// One list per .cu file.
using ForwardSm80Kernels =
    cuda::KernelList<Prepare, SplitCombine<bfloat16>, SplitCombine<half>, ForwardSm80<bfloat16, 64>,
                     ForwardSm80<bfloat16, 96>, ForwardSm80<bfloat16, 128>,
                     ForwardSm80<bfloat16, 192>, ForwardSm80<bfloat16, 256>, ForwardSm80<half, 64>,
                     ForwardSm80<half, 96>, ForwardSm80<half, 128>, ForwardSm80<half, 192>,
                     ForwardSm80<half, 256>>;

using ForwardF32Kernels =
    cuda::KernelList<SplitCombine<float>, ForwardSm80<float, 64>, ForwardSm80<float, 96>,
                     ForwardSm80<float, 128>, ForwardSm80<float, 192>, ForwardSm80<float, 256>>;

using ForwardSm90aKernels =
    cuda::KernelList<ForwardSm90a<bfloat16, 64>, ForwardSm90a<bfloat16, 96>,
                     ForwardSm90a<bfloat16, 128>, ForwardSm90a<bfloat16, 192>,
                     ForwardSm90a<bfloat16, 256>, ForwardSm90a<half, 64>, ForwardSm90a<half, 96>,
                     ForwardSm90a<half, 128>, ForwardSm90a<half, 192>, ForwardSm90a<half, 256>>;

template <class T>
using QueryGradientSm80Kernels =
    cuda::KernelList<BackwardStatistics<T>, BackwardSm80<T, 64, Gradient::kQuery>,
                     BackwardSm80<T, 96, Gradient::kQuery>, BackwardSm80<T, 128, Gradient::kQuery>,
                     BackwardSm80<T, 192, Gradient::kQuery>,
                     BackwardSm80<T, 256, Gradient::kQuery>>;

template <class T>
using KeyGradientSm80Kernels =
    cuda::KernelList<BackwardSm80<T, 64, Gradient::kKeyAndValue>,
                     BackwardSm80<T, 96, Gradient::kKeyAndValue>,
                     BackwardSm80<T, 128, Gradient::kKeyAndValue>,
                     BackwardSm80<T, 192, Gradient::kKey>, BackwardSm80<T, 192, Gradient::kValue>,
                     BackwardSm80<T, 256, Gradient::kKey>, BackwardSm80<T, 256, Gradient::kValue>>;

template <class T>
using QueryGradientSm90aKernels =
    cuda::KernelList<BackwardSm90a<T, 64, Gradient::kQuery>, BackwardSm90a<T, 96, Gradient::kQuery>,
                     BackwardSm90a<T, 128, Gradient::kQuery>,
                     BackwardSm90a<T, 192, Gradient::kQuery>,
                     BackwardSm90a<T, 256, Gradient::kQuery>>;

template <class T>
using KeyGradientSm90aKernels = cuda::KernelList<
    BackwardSm90a<T, 64, Gradient::kKeyAndValue>, BackwardSm90a<T, 96, Gradient::kKeyAndValue>,
    BackwardSm90a<T, 128, Gradient::kKeyAndValue>, BackwardSm90a<T, 192, Gradient::kKey>,
    BackwardSm90a<T, 192, Gradient::kValue>, BackwardSm90a<T, 256, Gradient::kKey>,
    BackwardSm90a<T, 256, Gradient::kValue>>;

}  // namespace varlen::varlen_attention
