#pragma once

#include "core/cross-entropy-device.h"
#include "core/linear-logits-kernels.h"

namespace varlen::cross_entropy_from_hidden {

using Sm80Kernels = LinearLossKernels<CrossEntropySink, CrossEntropySource>;

}  // namespace varlen::cross_entropy_from_hidden
