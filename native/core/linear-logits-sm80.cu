#define VARLEN_DEFINES_LINEAR_KERNELS
#include "core/linear-logits-launch.cuh"

namespace varlen::simt {

VARLEN_LINEAR_KERNELS(, float);
VARLEN_LINEAR_KERNELS(, bfloat16);
VARLEN_LINEAR_KERNELS(, half);
VARLEN_LINEAR_KERNEL(, DeviceRowOrder<MaskFilter>);
VARLEN_LINEAR_KERNEL(, DeviceBiasGradients);

}  // namespace varlen::simt
