#pragma once

#include "addon/bind.h"
#include "ops/adamw/adamw.h"
#include "ops/add/add.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"
#include "ops/generalized-jsd/generalized-jsd.h"
#include "ops/grad-clip/grad-clip.h"
#include "ops/group-advantage/group-advantage.h"
#include "ops/linear/linear.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"
#include "ops/policy-loss-from-logits/policy-loss-from-logits.h"
#include "ops/policy-loss/policy-loss.h"
#include "ops/rms-norm/rms-norm.h"
#include "ops/rope/rope.h"
#include "ops/sampling/sampling.h"
#include "ops/sparse-prefill/sparse-prefill.h"
#include "ops/swiglu/swiglu.h"
#include "ops/varlen-attention/varlen-attention.h"
#include "ops/write-rows/write-rows.h"

namespace varlen::addon {

// One line per op; src/native/binding.ts has the same list.
// clang-format off
using Ops = OpList<
    adamw::Forward,
    add::Forward,
    compress_visual_tokens::Forward,
    compress_visual_tokens::Backward,
    cross_entropy::Forward,
    cross_entropy::Backward,
    cross_entropy_from_hidden::Forward,
    cross_entropy_from_hidden::Backward,
    embedding::Forward,
    embedding::Backward,
    fused_linear_jsd::Forward,
    fused_linear_jsd::Backward,
    generalized_jsd::Forward,
    generalized_jsd::Backward,
    grad_clip::Forward,
    group_advantage::Forward,
    linear::Forward,
    linear::Backward,
    sparse_prefill::Merge,
    sparse_prefill::MergeBackward,
    policy_loss::Forward,
    policy_loss::Backward,
    policy_loss_from_hidden::Forward,
    policy_loss_from_hidden::Backward,
    policy_loss_from_logits::Forward,
    policy_loss_from_logits::Backward,
    sparse_prefill::Rebalance,
    rms_norm::Forward,
    rms_norm::Backward,
    rope::Forward,
    rope::Backward,
    sampling::Forward,
    sparse_prefill::Forward,
    sparse_prefill::Backward,
    sparse_prefill::Count,
    sparse_prefill::Indices,
    sparse_prefill::Mask,
    sparse_prefill::Plan,
    swiglu::Forward,
    swiglu::Backward,
    varlen_attention::Forward,
    varlen_attention::Backward,
    cross_entropy_from_hidden::Statistics,
    write_rows::Forward>;
// clang-format on

}  // namespace varlen::addon
