#include "ops/sparse-prefill/sparse-prefill.h"

#include <cmath>
#include <limits>
#include <string>

#include "ops/sparse-prefill/head.h"

namespace varlen::sparse_prefill {
namespace {

std::string Text(int64_t value) { return std::to_string(value); }

Status CheckOffsets(const char* name, const HostOrTensor<int32_t>& offsets, int64_t total) {
  if (!offsets.on_host()) {
    return Invalid(Code::kType, name, "must be on the host, where plans are laid out", "a tensor",
                   "Int32Array");
  }
  const int32_t* cu = offsets.data();
  if (offsets.size() < 1) {
    return Invalid(Code::kCuSeqlens, name, "must not be empty", "0 entries", "numSeqs + 1");
  }
  if (cu[0] != 0) return Invalid(Code::kCuSeqlens, name, "must start at 0", Text(cu[0]), "0");
  for (int64_t b = 1; b < offsets.size(); ++b) {
    if (cu[b] < cu[b - 1]) {
      return Invalid(Code::kCuSeqlens, name, "must not decrease",
                     std::string(name) + "[" + Text(b) + "] = " + Text(cu[b]),
                     ">= " + Text(cu[b - 1]));
    }
  }
  if (cu[offsets.size() - 1] > total) {
    return Invalid(Code::kCuSeqlens, name, "must end inside the tensor",
                   Text(cu[offsets.size() - 1]), "<= " + Text(total));
  }
  return {};
}

Status CheckValueDim(const Tensor& v) {
  const int64_t value_dim = v.shape[2];
  if (value_dim >= 8 && value_dim <= kMaxHeadDim && value_dim % 8 == 0) return {};
  return Invalid(Code::kHeadDim, "v", "has a head dimension outside the op's limits",
                 Text(value_dim), "a multiple of 8 up to " + Text(kMaxHeadDim));
}

Status CheckHeads(const Tensor& q, const Tensor& k) {
  const int64_t head_dim = q.shape[2];
  if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0) {
    return Invalid(Code::kHeadDim, "q", "has a head dimension outside the op's limits",
                   Text(head_dim), "a multiple of 8 up to " + Text(kMaxHeadDim));
  }
  if (k.shape[1] == 0 || q.shape[1] % k.shape[1] != 0) {
    return Invalid(Code::kShape, "k", "must have a number of heads that divides q's",
                   Text(k.shape[1]) + " for " + Text(q.shape[1]), "a divisor");
  }
  return {};
}

// A plan says how long its sequences are; running it on others would read out of bounds.
Status CheckPlan(const Tensor& plan, const Lengths& lengths, int64_t num_heads) {
  PlanView view;
  Status status = PlanView::Open(plan, &view);
  if (!status.ok()) return status;
  if (view.num_seqs() != lengths.cu_seqlens_q.size() - 1 || view.num_heads() != num_heads) {
    return Invalid(Code::kPlanMismatch, "plan", "was made for another batch",
                   Text(view.num_seqs()) + " sequences, " + Text(view.num_heads()) + " heads",
                   Text(lengths.cu_seqlens_q.size() - 1) + " and " + Text(num_heads));
  }
  const int32_t *cu_q = lengths.cu_seqlens_q.data(), *cu_k = lengths.cu_seqlens_k.data();
  for (int64_t b = 0; b < view.num_seqs(); ++b) {
    if (view.sequence(b).q_length != cu_q[b + 1] - cu_q[b] ||
        view.sequence(b).k_length != cu_k[b + 1] - cu_k[b]) {
      return Invalid(Code::kPlanMismatch, "plan", "was made for other lengths",
                     Text(view.sequence(b).q_length) + " queries in sequence " + Text(b),
                     Text(cu_q[b + 1] - cu_q[b]));
    }
  }
  return {};
}

Status CheckSegments(const Tensor& segments, int64_t num_segments) {
  const int32_t* of = segments.data<int32_t>();
  for (int64_t j = 0; j < segments.size(); ++j) {
    if (of[j] >= -1 && of[j] < num_segments) continue;
    return Invalid(Code::kIndex, "segments", "is out of range",
                   "segments[" + Text(j) + "] = " + Text(of[j]), "-1.." + Text(num_segments - 1));
  }
  return {};
}

}  // namespace

Status Lengths::Validate(int64_t total_q, int64_t total_k) const {
  for (const auto& [name, total] : {std::pair{"q", total_q}, std::pair{"k", total_k}}) {
    if (total > std::numeric_limits<int32_t>::max()) {
      return Invalid(Code::kOverflow, name, "has more rows than int32 offsets can hold",
                     Text(total), "< 2^31");
    }
  }
  Status status = CheckOffsets("cuSeqlensQ", cu_seqlens_q, total_q);
  if (status.ok()) status = CheckOffsets("cuSeqlensK", cu_seqlens_k, total_k);
  if (!status.ok()) return status;
  if (cu_seqlens_q.size() != cu_seqlens_k.size()) {
    return Invalid(Code::kCuSeqlens, "cuSeqlensK", "must have as many entries as cuSeqlensQ",
                   Text(cu_seqlens_k.size()), Text(cu_seqlens_q.size()));
  }
  if (!std::isfinite(softmax_scale)) {
    return Invalid(Code::kRange, "softmaxScale", "must be finite", std::to_string(softmax_scale),
                   "a finite number");
  }
  if (!(softcap >= 0) || std::isinf(softcap)) {
    return Invalid(Code::kRange, "softcap", "must be finite and not negative",
                   std::to_string(softcap), ">= 0 (0 turns it off)");
  }
  return {};
}

Status Forward::Validate() const {
  Status status = CheckHeads(q, k);
  if (status.ok()) status = CheckValueDim(v);
  return status.ok() ? lengths.Validate(q.shape[0], k.shape[0]) : status;
}

Status Backward::Validate() const {
  Status status = CheckHeads(q, k);
  if (status.ok()) status = CheckValueDim(v);
  if (status.ok() && static_cast<bool>(segments) != static_cast<bool>(segment_bias)) {
    return Invalid(Code::kIncompatible, segments ? "segmentBias" : "segments",
                   "belongs to the other", "one of them", "segments and segmentBias, or neither");
  }
  return status.ok() ? lengths.Validate(q.shape[0], k.shape[0]) : status;
}

Status Rebalance::Validate() const {
  Status status = CheckHeads(q, k);
  if (status.ok()) status = CheckValueDim(v);
  if (status.ok()) status = lengths.Validate(q.shape[0], k.shape[0]);
  if (!status.ok()) return status;
  if (!shares.on_host()) {
    return Invalid(Code::kType, "shares", "must be on the host", "a tensor", "Float32Array");
  }
  if (shares.size() < 1 || shares.size() > kMaxSegments) {
    return Invalid(Code::kRange, "shares", "has an unusable number of segments",
                   Text(shares.size()), "1.." + Text(kMaxSegments));
  }
  for (int64_t g = 0; g < shares.size(); ++g) {
    const float share = shares.data()[g];
    if (share >= 0 && std::isfinite(share)) continue;
    return Invalid(Code::kRange, "shares", "must be finite and not negative", std::to_string(share),
                   ">= 0");
  }
  if (!(strength >= 0 && strength <= 1)) {
    return Invalid(Code::kRange, "strength", "is out of range", std::to_string(strength), "0..1");
  }
  if (!(max_bias >= 0) || std::isinf(max_bias)) {
    return Invalid(Code::kRange, "maxBias", "must be finite and not negative",
                   std::to_string(max_bias), ">= 0");
  }
  return {};
}

Status Plan::Validate() const {
  Status status = CheckHeads(q, k);
  if (!status.ok()) return status;
  if (!config.on_host()) {
    return Invalid(Code::kType, "config", "must be on the host", "a tensor", "Int32Array");
  }
  if (last_q < 1 || last_q > 64) {
    return Invalid(Code::kRange, "lastQ", "is out of range", Text(last_q), "1..64");
  }
  if (recall_rows < 0 || recall_rows > 4096) {
    return Invalid(Code::kRange, "rows", "is out of range", Text(recall_rows), "0..4096");
  }
  if (!(min_recall >= 0 && min_recall <= 1)) {
    return Invalid(Code::kRange, "minRecall", "is out of range", std::to_string(min_recall),
                   "0..1");
  }
  return lengths.Validate(q.shape[0], k.shape[0]);
}

Status Run(const Forward& params) {
  Status status = CheckPlan(params.plan, params.lengths, params.q.shape[1]);
  if (!status.ok()) return status;
  return params.q.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const Backward& params) {
  if (params.q.device.kind == DeviceKind::kCuda) return RunCuda(params);
  Status status = CheckPlan(params.plan, params.lengths, params.q.shape[1]);
  if (status.ok() && params.segments) {
    status = CheckSegments(params.segments, params.segment_bias.shape[2]);
  }
  return status.ok() ? RunCpu(params) : status;
}
Status Run(const Rebalance& params) {
  if (params.q.device.kind == DeviceKind::kCuda) return RunCuda(params);
  Status status = CheckPlan(params.plan, params.lengths, params.q.shape[1]);
  if (status.ok()) status = CheckSegments(params.segments, params.shares.size());
  return status.ok() ? RunCpu(params) : status;
}
Status Run(const Plan& params) {
  return params.q.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const Merge& params) {
  return params.out1.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}
Status Run(const MergeBackward& params) {
  return params.d_out.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::sparse_prefill
