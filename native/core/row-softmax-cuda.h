#pragma once

#include <cstdint>
#include <string>

#include "core/cuda/launch.h"
#include "core/row-softmax-device.h"
#include "core/tensor.h"

// What the launches of core/row-softmax-device.h's kernels share.
namespace varlen {

// Whether every row begins at a multiple of 16 bytes.
inline bool AlignedRows(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.address()) % 16 == 0 &&
         tensor.strides[0] * SizeOf(tensor.dtype) % 16 == 0;
}

template <class T>
DeviceLogits<T> LogitsOnGpu(const Tensor& logits, const int32_t* targets,
                            const DeviceActivation& activation) {
  return {.logits = logits.data<T>(),
          .stride = logits.strides[0],
          .mask = nullptr,
          .weights = nullptr,
          .targets = targets,
          .num_rows = logits.shape[0],
          .vocab_size = logits.shape[1],
          .activation = activation,
          .vector_access = AlignedRows(logits)};
}

// Target ids outside the vocabulary, at rows that count: `found` of DeviceTargetCheck.
inline Status JudgeTargets(const double* found, const HostOrTensor<int32_t>& targets,
                           int64_t vocab_size, const std::string& otherwise) {
  if (found[0] == 0) return {};
  const auto row = static_cast<int64_t>(found[1]);
  std::string got = "targetIds[" + std::to_string(row) + "]";
  if (targets.on_host()) got += " = " + std::to_string(targets.data()[row]);
  if (found[0] > 1) got += " and " + std::to_string(static_cast<int64_t>(found[0]) - 1) + " more";
  Status status = Invalid(Code::kIndex, "targetIds", "is outside the vocabulary", got,
                          "0.." + std::to_string(vocab_size - 1) + otherwise);
  status.details = {{"row", static_cast<double>(row)}};
  return status;
}

// Weights that are negative or not finite, at rows that count: their number, the first row.
inline Status JudgeWeights(const double* bad) {
  if (bad[0] == 0) return {};
  std::string got = "weights[" + std::to_string(static_cast<int64_t>(bad[1])) + "]";
  if (bad[0] > 1) got += " and " + std::to_string(static_cast<int64_t>(bad[0]) - 1) + " more";
  return Invalid(Code::kWeight, "weights", "must be finite and not negative", got, ">= 0");
}

}  // namespace varlen
