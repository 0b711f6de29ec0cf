#pragma once

#include <cstdint>

#include "core/dtype.h"

// The device back end of the sm_80 instructions: one inline PTX statement (PTX ISA 7.0 and later)
// per function. What each does is said in host.h.
#define SIMT_FN __device__ __forceinline__
// Before a loop. Register arrays need it: an index that is not a constant puts them in memory.
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_NO_UNROLL _Pragma("unroll 1")

namespace varlen::simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kWarpgroupSize = 128;

// --- who am I -----------------------------------------------------------------------------------

SIMT_FN int ThreadIndex() { return static_cast<int>(threadIdx.x); }
SIMT_FN int LaneIndex() { return ThreadIndex() % kWarpSize; }
SIMT_FN int WarpIndex() { return ThreadIndex() / kWarpSize; }
SIMT_FN int64_t BlockIndex() { return blockIdx.x; }
SIMT_FN int64_t GridSize() { return gridDim.x; }

namespace internal {
SIMT_FN uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
}  // namespace internal

// The same value, of which the compiler knows nothing: what is computed from it is not hoisted out
// of a loop, where it would hold registers.
SIMT_FN int Opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// --- barriers -----------------------------------------------------------------------------------

SIMT_FN void SyncThreads() { __syncthreads(); }
SIMT_FN void BarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SIMT_FN void BarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SIMT_FN void SyncWarp() { __syncwarp(); }

// --- warp collectives ---------------------------------------------------------------------------

inline constexpr unsigned kAllLanes = 0xffffffff;

template <class T>
SIMT_FN T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <class T>
SIMT_FN T ShuffleIndex(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
SIMT_FN T ShuffleUp(T value, int delta) {
  return __shfl_up_sync(kAllLanes, value, delta);
}
SIMT_FN uint32_t Ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }

// --- memory -------------------------------------------------------------------------------------

struct alignas(16) Vector4 {
  uint32_t x, y, z, w;
};

namespace internal {
template <class T>
struct Identity {
  using Type = T;
};
}  // namespace internal

template <class T>
SIMT_FN T Load(const T* pointer) {
  return *pointer;
}
template <class T>
SIMT_FN void Store(T* pointer, typename internal::Identity<T>::Type value) {
  *pointer = value;
}
template <class T>
SIMT_FN T AtomicAdd(T* pointer, typename internal::Identity<T>::Type value) {
  return atomicAdd(pointer, value);
}
SIMT_FN void SpinUntil(const int32_t* pointer, int32_t value) {
  int32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(pointer) : "memory");
  } while (now != value);
}
SIMT_FN void StoreRelease(int32_t* pointer, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}

// --- cp.async -----------------------------------------------------------------------------------

SIMT_FN void CopyAsync16(void* shared, const void* source, int valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(internal::SharedAddress(shared)),
      "l"(source), "r"(valid)
      : "memory");
}
SIMT_FN void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
SIMT_FN void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// --- matrices -----------------------------------------------------------------------------------

SIMT_FN void LoadMatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(internal::SharedAddress(row))
               : "memory");
}
SIMT_FN void LoadMatrix(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(internal::SharedAddress(row))
               : "memory");
}
SIMT_FN void LoadMatrixTransposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(internal::SharedAddress(row))
               : "memory");
}
SIMT_FN void LoadMatrixTransposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(internal::SharedAddress(row))
               : "memory");
}

template <class T>
SIMT_FN void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
SIMT_FN void Mma<bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
SIMT_FN void Mma<half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- arithmetic ---------------------------------------------------------------------------------

template <class T>
SIMT_FN uint32_t PackPair(float low, float high);
template <>
SIMT_FN uint32_t PackPair<bfloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
SIMT_FN uint32_t PackPair<half>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <class T>
SIMT_FN float ToFloat(T value);
template <>
SIMT_FN float ToFloat<bfloat16>(bfloat16 value) {
  return __uint_as_float(uint32_t{value.bits} << 16);
}
template <>
SIMT_FN float ToFloat<half>(half value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
template <class T>
SIMT_FN T FromFloat(float value) {
  T narrow;
  narrow.bits = static_cast<uint16_t>(PackPair<T>(value, 0.0f));
  return narrow;
}
SIMT_FN float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMT_FN float Log2(float x) { return log2f(x); }
SIMT_FN float Tanh(float x) { return tanhf(x); }
SIMT_FN float Max(float a, float b) { return fmaxf(a, b); }
SIMT_FN float Infinity() { return __uint_as_float(0x7f800000); }
SIMT_FN float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
SIMT_FN uint32_t FloatToBits(float value) { return __float_as_uint(value); }

}  // namespace varlen::simt
