#pragma once

#include "core/cuda/kernel.h"
#include "core/jsd-words-device.h"

// The kernels of both divergences, by the file that compiles them: nine in one take long.
namespace varlen::jsd {

template <template <class, class> class Kernel, class... More>
using OfBothSides =
    cuda::KernelList<Kernel<float, float>, Kernel<float, bfloat16>, Kernel<float, half>,
                     Kernel<bfloat16, float>, Kernel<bfloat16, bfloat16>, Kernel<bfloat16, half>,
                     Kernel<half, float>, Kernel<half, bfloat16>, Kernel<half, half>, More...>;

using ForwardKernels = OfBothSides<DeviceDivergence, DeviceWeights, DeviceWordProblems>;
using BackwardKernels = OfBothSides<DeviceDivergenceGradients>;
// S: dtype of the student.
template <class S>
using WordKernels =
    cuda::KernelList<DeviceWordDivergence<S, float>, DeviceWordDivergence<S, bfloat16>,
                     DeviceWordDivergence<S, half>, DeviceWordGradients<S>>;

}  // namespace varlen::jsd
