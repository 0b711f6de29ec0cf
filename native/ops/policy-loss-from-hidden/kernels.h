#pragma once

#include "core/linear-logits-kernels.h"
#include "ops/policy-loss-from-hidden/device.h"

namespace varlen::policy_loss_from_hidden {

using Sm80Kernels = LinearLossKernels<LossRowSink, RowSource>;

}  // namespace varlen::policy_loss_from_hidden
