#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/token-chains-device.h"

namespace varlen::cuda {

// The chains of core/token-chains-device.h, in scratch memory.
struct TokenChains {
  const int32_t* head;  // [num_rows]
  const int32_t* next;  // [num_tokens]
};

inline TokenChains ChainTokens(Launch& launch, const int32_t* ids, int64_t num_tokens,
                               int64_t num_rows) {
  auto* ends = launch.Scratch<int32_t>(2 * num_rows);  // heads, then lasts
  auto* next = launch.Scratch<int32_t>(num_tokens);
  launch.Fill(ends, 0xff, 2 * num_rows * static_cast<int64_t>(sizeof(int32_t)));  // -1
  launch.Run<DeviceTokenChains>(1, {ids, num_tokens, num_rows, ends, ends + num_rows, next});
  return {ends, next};
}

}  // namespace varlen::cuda
