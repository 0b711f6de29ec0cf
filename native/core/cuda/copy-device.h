#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/kernel.h"
#include "core/device-reduce.h"
#include "core/dtype.h"
#include "core/simt/simt.h"

// core/copy.cc for a GPU: elements between layouts and element types. The types are arguments: as
// template parameters they would make 49 kernels of one that waits for memory anyway.
namespace varlen::cuda {

// Elements of a tensor, any layout; device memory.
struct DeviceView {
  void* data;  // the first element
  DType dtype;
  int32_t rank;
  int64_t shape[6], strides[6];

  SIMT_FN int64_t Offset(int64_t i) const {
    int64_t offset = 0;
    for (int d = rank - 1; d >= 0; --d) {
      offset += i % shape[d] * strides[d];
      i /= shape[d];
    }
    return offset;
  }
};

// An element of any type: integers exactly, the others as a double.
struct DeviceValue {
  double number;
  int64_t whole;
  bool integer;
};

SIMT_FN DeviceValue LoadValue(const DeviceView& view, int64_t i) {
  const int64_t at = view.Offset(i);
  switch (view.dtype) {
    case DType::kF32:
      return {simt::Load(static_cast<const float*>(view.data) + at), 0, false};
    case DType::kF16:
      return {LoadFloat(static_cast<const half*>(view.data) + at), 0, false};
    case DType::kBF16:
      return {LoadFloat(static_cast<const bfloat16*>(view.data) + at), 0, false};
    case DType::kF64:
      return {simt::Load(static_cast<const double*>(view.data) + at), 0, false};
    case DType::kI32:
      return {0, simt::Load(static_cast<const int32_t*>(view.data) + at), true};
    case DType::kI64:
      return {0, simt::Load(static_cast<const int64_t*>(view.data) + at), true};
    default:
      return {0, simt::Load(static_cast<const uint8_t*>(view.data) + at), true};
  }
}

// A float that rounds to 16 bits as `value` itself does: where it is inexact its last bit is set.
SIMT_FN float RoundToOdd(double value) {
  const auto nearest = static_cast<float>(value);
  uint32_t bits = simt::FloatToBits(nearest);
  if (nearest == value || value != value || (bits & 1) != 0) return nearest;
  const double distance = nearest < 0 ? -double{nearest} : double{nearest};
  bits += distance > (value < 0 ? -value : value) ? ~uint32_t{0} : 1;  // the odd one on its side
  return simt::BitsToFloat(bits);
}

// The same for integers beyond 2^53, which no double holds: 32 bits and whether any was lost.
SIMT_FN float RoundToOdd(int64_t value) {
  const uint64_t magnitude = value < 0 ? 0 - static_cast<uint64_t>(value) : value;
  uint64_t kept = magnitude, scale = 1;
  bool inexact = false;
  while (kept >> 32 != 0) {
    inexact = inexact || (kept & 1) != 0;
    kept >>= 1;
    scale <<= 1;
  }
  const double odd = static_cast<double>(kept | (inexact ? 1 : 0)) * static_cast<double>(scale);
  const float result = RoundToOdd(odd);
  return value < 0 ? -result : result;
}

// Towards zero, to the nearest of [low, high] where it does not fit, NaN to 0. `end` is the power
// of two above `high`.
SIMT_FN int64_t Truncate(double value, int64_t low, int64_t high, double end) {
  if (value != value) return 0;
  if (value >= end) return high;
  if (value <= (low < 0 ? -end : -1.0)) return low;
  return static_cast<int64_t>(value);
}

template <class T>
SIMT_FN T NarrowValue(const DeviceValue& v) {
  return NarrowFloat<T>(v.integer ? RoundToOdd(v.whole) : RoundToOdd(v.number));
}

SIMT_FN void StoreValue(const DeviceView& view, int64_t i, const DeviceValue& v) {
  const int64_t at = view.Offset(i);
  switch (view.dtype) {
    case DType::kF32:
      simt::Store(static_cast<float*>(view.data) + at,
                  v.integer ? static_cast<float>(v.whole) : static_cast<float>(v.number));
      return;
    case DType::kF16:
      simt::Store(static_cast<half*>(view.data) + at, NarrowValue<half>(v));
      return;
    case DType::kBF16:
      simt::Store(static_cast<bfloat16*>(view.data) + at, NarrowValue<bfloat16>(v));
      return;
    case DType::kF64:
      simt::Store(static_cast<double*>(view.data) + at,
                  v.integer ? static_cast<double>(v.whole) : v.number);
      return;
    case DType::kI32:
      simt::Store(
          static_cast<int32_t*>(view.data) + at,
          static_cast<int32_t>(
              v.integer ? v.whole : Truncate(v.number, -2147483648LL, 2147483647LL, 2147483648.0)));
      return;
    case DType::kI64:
      simt::Store(static_cast<int64_t*>(view.data) + at,
                  v.integer ? v.whole
                            : Truncate(v.number, -9223372036854775807LL - 1, 9223372036854775807LL,
                                       9223372036854775808.0));
      return;
    case DType::kU8:
      simt::Store(static_cast<uint8_t*>(view.data) + at,
                  static_cast<uint8_t>(v.integer ? v.whole : Truncate(v.number, 0, 255, 256.0)));
      return;
  }
}

// dst = src, or dst += src in float32.
struct DeviceCopy {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceView src, dst;
    int64_t size;  // elements
    bool accumulate;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t i = simt::BlockIndex() * kThreads + simt::ThreadIndex(); i < p.size;
         i += simt::GridSize() * kThreads) {
      DeviceValue value = LoadValue(p.src, i);
      if (p.accumulate) {
        const float sum =
            static_cast<float>(LoadValue(p.dst, i).number) + static_cast<float>(value.number);
        value = {sum, 0, false};
      }
      StoreValue(p.dst, i, value);
    }
  }
};

}  // namespace varlen::cuda
