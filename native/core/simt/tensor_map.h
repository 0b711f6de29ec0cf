#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"

// What a TMA tensor map says: a strided tensor in global memory and the box that one instruction
// moves. Dimension 0 is the contiguous one, as in the CUDA driver API.
namespace varlen::simt {

// How 16-byte chunks are spread in a shared tile: address bits 4.. are XORed with bits 7..
enum class Swizzle : uint8_t { kNone, k32Bytes, k64Bytes, k128Bytes };

// Rows of a swizzled box are this long at most, in bytes.
inline constexpr int SwizzleSpan(Swizzle swizzle) {
  return swizzle == Swizzle::kNone      ? 16
         : swizzle == Swizzle::k32Bytes ? 32
         : swizzle == Swizzle::k64Bytes ? 64
                                        : 128;
}

inline constexpr int kMaxTensorMapRank = 5;

struct TensorMapShape {
  void* data = nullptr;  // 16-byte aligned
  DType dtype = DType::kBF16;
  int rank = 0;
  std::array<int64_t, kMaxTensorMapRank> size{};    // elements
  std::array<int64_t, kMaxTensorMapRank> stride{};  // elements; stride[0] is 1
  std::array<int, kMaxTensorMapRank> box{};         // elements, at most 256 each
  Swizzle swizzle = Swizzle::kNone;

  int64_t box_elements() const {
    int64_t elements = 1;
    for (int d = 0; d < rank; ++d) elements *= box[d];
    return elements;
  }
  int64_t box_bytes() const { return box_elements() * SizeOf(dtype); }
};

// A tensor map as kernels take it, inside their Params: the 128 bytes that cuTensorMapEncodeTiled
// fills (CUtensorMap), or, in the emulator, the shape itself. core/cuda/launch.h makes either.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128 && sizeof(TensorMapShape) <= sizeof(TensorMap));

}  // namespace varlen::simt
