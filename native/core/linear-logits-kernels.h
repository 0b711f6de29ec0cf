#pragma once

#include "core/cuda/kernel.h"
#include "core/linear-logits-device.h"

namespace varlen {

// The kernels of linear-logits-device.h that no op changes: linked once, by core.
using LinearLogitsKernels =
    cuda::KernelList<DeviceRowOrder<MaskFilter>, DeviceBiasGradients, DeviceLinearStatistics<float>,
                     DeviceLinearStatistics<bfloat16>, DeviceLinearStatistics<half>,
                     DeviceHiddenGradients<float>, DeviceHiddenGradients<bfloat16>,
                     DeviceHiddenGradients<half>, DeviceWeightGradients<float>,
                     DeviceWeightGradients<bfloat16>, DeviceWeightGradients<half>>;

// Those that an op makes of its own sink and source.
template <class Sink, class Source>
using LinearLossKernels =
    cuda::KernelList<DeviceTargetCheck, DeviceLinearMerge<Sink>,
                     DeviceRowOrder<GradientFilter<Source>>, DeviceGradientScale<Source>,
                     DeviceLogitGradients<float, Source>, DeviceLogitGradients<bfloat16, Source>,
                     DeviceLogitGradients<half, Source>>;

}  // namespace varlen
