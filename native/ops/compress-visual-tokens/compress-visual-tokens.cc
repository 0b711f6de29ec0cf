#include "ops/compress-visual-tokens/compress-visual-tokens.h"

#include <cmath>
#include <string>
#include <tuple>

namespace varlen::compress_visual_tokens {
namespace {

std::string Text(int64_t value) { return std::to_string(value); }

Status CheckOnHost(const char* name, const HostOrTensor<int32_t>& values) {
  if (!values || values.on_host()) return {};
  return Invalid(Code::kType, name, "must be on the host, where the rows are counted", "a tensor",
                 "Int32Array");
}

Status CheckOffsets(const HostOrTensor<int32_t>& offsets, int64_t num_tokens) {
  const int32_t* at = offsets.data();
  const int64_t images = offsets.size() - 1;
  if (images < 0 || at[0] != 0) {
    return Invalid(Code::kCuSeqlens, "imageOffsets", "must start at 0",
                   images < 0 ? "nothing" : Text(at[0]), "0");
  }
  for (int64_t i = 0; i < images; ++i) {
    if (at[i + 1] >= at[i]) continue;
    return Invalid(Code::kCuSeqlens, "imageOffsets", "must not decrease", Text(at[i + 1]),
                   ">= " + Text(at[i]));
  }
  if (at[images] == num_tokens) return {};
  return Invalid(Code::kCuSeqlens, "imageOffsets", "must end at the number of tokens",
                 Text(at[images]), Text(num_tokens));
}

}  // namespace

Status Forward::Validate() const {
  const int64_t num_tokens = features.shape[0];
  Status status = CheckOnHost("imageOffsets", image_offsets);
  if (status.ok()) status = CheckOnHost("targets", targets);
  if (status.ok()) status = CheckOnHost("minimums", minimums);
  if (status.ok()) status = CheckOnHost("protected", protected_mask);
  if (status.ok()) status = CheckOffsets(image_offsets, num_tokens);
  if (!status.ok()) return status;
  const int64_t images = image_offsets.size() - 1;
  for (const auto& [name, got, expected] :
       {std::tuple{"targets", targets.size(), images},
        {"minimums", minimums.size(), images},
        {"protected", protected_mask ? protected_mask.size() : num_tokens, num_tokens}}) {
    if (got == expected) continue;
    return Invalid(Code::kShape, name, "has the wrong number of entries", Text(got),
                   Text(expected));
  }
  if (!(threshold <= 1)) {
    return Invalid(Code::kRange, "threshold", "is out of range", std::to_string(threshold),
                   "a cosine, or less than 0 for rounds");
  }
  if (frame_tokens < 0) {
    return Invalid(Code::kRange, "frameTokens", "is out of range", Text(frame_tokens), ">= 0");
  }
  int64_t rows = 0;
  for (int64_t i = 0; i + 1 < image_offsets.size(); ++i) {
    const int32_t* at = image_offsets.data() + i;
    const int64_t tokens = at[1] - at[0], target = targets.data()[i];
    int64_t kept = tokens > 0 ? 1 : 0;
    if (protected_mask) {
      int64_t marked = 0;
      for (int32_t x = at[0]; x < at[1]; ++x) marked += protected_mask.data()[x] != 0;
      kept = std::max(kept, marked);
    }
    if (target < kept || target > tokens) {
      return Invalid(Code::kRange, "targets", "is out of range",
                     "targets[" + Text(i) + "] = " + Text(target),
                     Text(kept) + ".." + Text(tokens) + ", protected tokens to all tokens");
    }
    if (minimums.data()[i] > target) {
      return Invalid(Code::kRange, "minimums", "is above the target",
                     "minimums[" + Text(i) + "] = " + Text(minimums.data()[i]),
                     "<= " + Text(target));
    }
    rows += target;
  }
  if (keep_idx && keep_idx.size() != rows) {
    return Invalid(Code::kShape, "keepIdx", "must have a row for every token of the targets",
                   Text(keep_idx.size()), Text(rows));
  }
  return {};
}

Status Run(const Forward& params) {
  return params.features.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

Status Run(const Backward& params) {
  return params.d_out.device.kind == DeviceKind::kCuda ? RunCuda(params) : RunCpu(params);
}

}  // namespace varlen::compress_visual_tokens
