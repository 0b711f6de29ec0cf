#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace varlen::loss {

// A 64-bit fingerprint of active-token counts in their order; src/ops/length-hash.ts has the same
// one, and an aggregation plan carries it.
class LengthHash {
 public:
  VARLEN_HOST_DEVICE explicit LengthHash(int64_t num_seqs)
      : high_(static_cast<uint32_t>(num_seqs)) {}

  VARLEN_HOST_DEVICE void Add(int64_t length) {
    const auto value = static_cast<uint32_t>(length);
    low_ = Mix(low_ ^ value);
    high_ = Mix(((high_ * 0x01000193u) ^ value) + low_);
  }
  VARLEN_HOST_DEVICE uint32_t low() const { return low_; }
  VARLEN_HOST_DEVICE uint32_t high() const { return high_; }

 private:
  // MurmurHash3's finalizer.
  VARLEN_HOST_DEVICE static uint32_t Mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
  }
  uint32_t low_ = 0x9e3779b9u;
  uint32_t high_;
};

}  // namespace varlen::loss
