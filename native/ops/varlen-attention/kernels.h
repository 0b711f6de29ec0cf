#pragma once

#include "core/cuda/kernel.h"
#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/prepare.h"

namespace varlen::varlen_attention {

using Sm80Kernels =
    cuda::KernelList<Prepare, ForwardSm80<bfloat16, 64>, ForwardSm80<bfloat16, 96>,
                     ForwardSm80<bfloat16, 128>, ForwardSm80<bfloat16, 192>,
                     ForwardSm80<bfloat16, 256>, ForwardSm80<half, 64>, ForwardSm80<half, 96>,
                     ForwardSm80<half, 128>, ForwardSm80<half, 192>, ForwardSm80<half, 256>>;

}  // namespace varlen::varlen_attention
