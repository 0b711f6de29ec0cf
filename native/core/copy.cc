#include "core/copy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/cuda/transfer.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace varlen {
namespace {

bool OnGpu(const Tensor& tensor) { return tensor.device.kind == DeviceKind::kCuda; }

// Elements per piece: large enough to hide a hand-out, small enough that a cancelled copy stops
// soon.
constexpr int64_t kPiece = 65536;

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, bfloat16> || std::is_same_v<T, half>;

// A float32 that rounds to the 16-bit types as `value` itself does: where it is inexact its last
// bit is set ("round to odd"), which keeps a second rounding from seeing a tie that is none.
float RoundToOdd(double value) {
  const float nearest = static_cast<float>(value);
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (nearest == value || std::isnan(value) || (bits & 1) != 0) return nearest;
  bits += std::abs(nearest) > std::abs(value) ? -1 : 1;  // the odd neighbour on value's side
  return std::bit_cast<float>(bits);
}

// The same for integers beyond 2^53, which no double holds: keeps 32 bits and whether any was lost.
float RoundToOdd(int64_t value) {
  const uint64_t magnitude = value < 0 ? 0 - static_cast<uint64_t>(value) : value;
  const int lost = std::max(0, static_cast<int>(std::bit_width(magnitude)) - 32);
  const uint64_t kept = magnitude >> lost;
  const bool inexact = kept << lost != magnitude;
  const float result = RoundToOdd(std::ldexp(static_cast<double>(kept | (inexact ? 1 : 0)), lost));
  return value < 0 ? -result : result;
}

// Towards zero; what does not fit becomes the nearest bound, NaN becomes 0.
template <class To, class From>
To Truncate(From value) {
  if (std::isnan(value)) return 0;
  // The bounds as powers of two, which every float type holds.
  const From end = std::ldexp(From{1}, std::numeric_limits<To>::digits);
  if (value >= end) return std::numeric_limits<To>::max();
  if (value <= (std::is_signed_v<To> ? -end : From{-1})) return std::numeric_limits<To>::min();
  return static_cast<To>(value);
}

template <class To, class From>
To Convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (kIsHalf<From>) {
    return Convert<To>(static_cast<float>(value));
  } else if constexpr (kIsHalf<To>) {
    if constexpr (sizeof(From) == 8)
      return To(RoundToOdd(value));
    else if constexpr (std::is_integral_v<From>)
      return To(RoundToOdd(int64_t{value}));
    else
      return To(value);
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    return Truncate<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

// Calls body(element offset in the strided tensor, first contiguous index, count) for runs along
// the last dimension that cover [begin, end) of the tensor's elements in row-major order.
template <class Body>
void ForEachRun(const Tensor& t, int64_t begin, int64_t end, const Body& body) {
  const int64_t inner = t.rank == 0 ? 1 : t.shape[t.rank - 1];
  for (int64_t i = begin; i < end;) {
    int64_t row = i / inner;
    const int64_t column = i % inner;
    int64_t offset = t.rank == 0 ? 0 : column * t.strides[t.rank - 1];
    for (int d = t.rank - 2; d >= 0; --d) {
      offset += row % t.shape[d] * t.strides[d];
      row /= t.shape[d];
    }
    const int64_t count = std::min(inner - column, end - i);
    body(offset, i, count);
    i += count;
  }
}

template <class From, class Body>
Status ForEachElement(const Tensor& src, const Body& body) {
  const int64_t size = src.size();
  const int64_t stride = src.rank == 0 ? 1 : src.strides[src.rank - 1];
  const From* from = src.data<From>();
  return ParallelFor((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece;
    ForEachRun(src, begin, std::min(size, begin + kPiece),
               [&](int64_t offset, int64_t index, int64_t count) {
                 for (int64_t j = 0; j < count; ++j) body(index + j, from[offset + j * stride]);
               });
  });
}

}  // namespace

Status Run(const Copy& params) {
  if (OnGpu(params.src) || OnGpu(params.dst)) return cuda::Run(params);
  if (params.src.dtype == params.dst.dtype) {
    return CopyOut(params.src, reinterpret_cast<std::byte*>(params.dst.storage->data()) +
                                   params.dst.offset * SizeOf(params.dst.dtype));
  }
  return DispatchDType<float, half, bfloat16, double, int32_t, int64_t, uint8_t>(
      params.src.dtype, "dtype", [&]<class From>() {
        return DispatchDType<float, half, bfloat16, double, int32_t, int64_t, uint8_t>(
            params.dst.dtype, "dtype", [&]<class To>() {
              To* to = params.dst.data<To>();
              return ForEachElement<From>(
                  params.src, [to](int64_t index, From value) { to[index] = Convert<To>(value); });
            });
      });
}

Status Run(const Accumulate& params) {
  if (OnGpu(params.dst)) return cuda::Run(params);
  return DispatchDType<float, half, bfloat16>(params.src.dtype, "dtype", [&]<class From>() {
    return DispatchDType<float, half, bfloat16>(params.dst.dtype, "dtype", [&]<class To>() {
      To* to = params.dst.data<To>();
      if (!params.dst.contiguous()) {
        // Then the source is: its gradient goes into a part of a larger one.
        const From* from = params.src.data<From>();
        const Tensor& dst = params.dst;
        const int64_t size = dst.size(), stride = dst.strides[dst.rank - 1];
        return ParallelFor((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
          const int64_t begin = piece * kPiece;
          ForEachRun(dst, begin, std::min(size, begin + kPiece),
                     [&](int64_t offset, int64_t index, int64_t count) {
                       for (int64_t j = 0; j < count; ++j) {
                         To& sum = to[offset + j * stride];
                         sum = To(static_cast<float>(sum) + static_cast<float>(from[index + j]));
                       }
                     });
        });
      }
      return ForEachElement<From>(params.src, [to](int64_t index, From value) {
        to[index] = To(static_cast<float>(to[index]) + static_cast<float>(value));
      });
    });
  });
}

Status CopyOut(const Tensor& src, std::byte* dst) {
  const int64_t element = SizeOf(src.dtype);
  const std::byte* from = src.storage->data() + src.offset * element;
  const int64_t size = src.size();
  const bool dense_rows = src.rank == 0 || src.strides[src.rank - 1] == 1;
  return ParallelFor((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece;
    const int64_t end = std::min(size, begin + kPiece);
    if (src.contiguous()) {
      std::memcpy(dst + begin * element, from + begin * element, (end - begin) * element);
      return;
    }
    ForEachRun(src, begin, end, [&](int64_t offset, int64_t index, int64_t count) {
      if (dense_rows) {
        std::memcpy(dst + index * element, from + offset * element, count * element);
        return;
      }
      const int64_t stride = src.strides[src.rank - 1] * element;
      for (int64_t j = 0; j < count; ++j) {
        std::memcpy(dst + (index + j) * element, from + offset * element + j * stride, element);
      }
    });
  });
}

}  // namespace varlen
