#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "core/simt/host/block.h"
#include "core/simt/host/float16.h"
#include "core/simt/host/global_memory.h"

// The host back end of the sm_80 instructions. Every operation takes the line of the kernel as its
// last, defaulted argument; device.h has the same functions without it.
#define SIMT_FN inline
#define SIMT_UNROLL
#define SIMT_NO_UNROLL

namespace varlen::simt {

// --- who am I -----------------------------------------------------------------------------------

inline int ThreadIndex() { return Block::Current().current_thread(); }
inline int LaneIndex() { return ThreadIndex() % kWarpSize; }
inline int WarpIndex() { return ThreadIndex() / kWarpSize; }
inline int64_t BlockIndex() { return Block::Current().index(); }
inline int64_t GridSize() { return Block::Current().grid(); }

// The same value; under nvcc one that the compiler cannot see through.
inline int Opaque(int value) { return value; }

// --- barriers -----------------------------------------------------------------------------------

// __syncthreads.
inline void SyncThreads(Site site = Site::current()) {
  Block& block = Block::Current();
  block.barriers.Sync(0, block.threads(), "__syncthreads", site);
}
// bar.sync: `threads` threads of the block meet at barrier `id` (0 is SyncThreads).
inline void BarrierSync(int id, int threads, Site site = Site::current()) {
  Block::Current().barriers.Sync(id, threads, "bar.sync", site);
}
// bar.arrive: counts as there, and goes on.
inline void BarrierArrive(int id, int threads, Site site = Site::current()) {
  Block::Current().barriers.Arrive(id, threads, site);
}
void SyncWarp(Site site = Site::current());

// --- warp collectives: all 32 lanes -------------------------------------------------------------

namespace internal {
uint32_t ShuffleXorBits(uint32_t value, int mask, const Site& site);
uint32_t ShuffleIndexBits(uint32_t value, int lane, const Site& site);
uint32_t ShuffleUpBits(uint32_t value, int delta, const Site& site);
}  // namespace internal

// The value of lane (own ^ mask), of lane `lane`, of lane (own - delta) or the own one below 0.
template <class T>
T ShuffleXor(T value, int mask, Site site = Site::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(internal::ShuffleXorBits(std::bit_cast<uint32_t>(value), mask, site));
}
template <class T>
T ShuffleIndex(T value, int lane, Site site = Site::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(internal::ShuffleIndexBits(std::bit_cast<uint32_t>(value), lane, site));
}
template <class T>
T ShuffleUp(T value, int delta, Site site = Site::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(internal::ShuffleUpBits(std::bit_cast<uint32_t>(value), delta, site));
}
// Bit i: lane i's predicate.
uint32_t Ballot(bool predicate, Site site = Site::current());

// --- memory -------------------------------------------------------------------------------------

// Sixteen bytes that move as one.
struct alignas(16) Vector4 {
  uint32_t x, y, z, w;
};

namespace internal {
void CheckLoad(const void* pointer, int bytes, const Site& site);
void CheckStore(void* pointer, int bytes, const Site& site);
}  // namespace internal

// Of shared or global memory, T of 1 to 16 bytes, aligned to its size.
template <class T>
T Load(const T* pointer, Site site = Site::current()) {
  internal::CheckLoad(pointer, sizeof(T), site);
  T value;
  std::memcpy(&value, pointer, sizeof(T));
  return value;
}
template <class T>
void Store(T* pointer, std::type_identity_t<T> value, Site site = Site::current()) {
  internal::CheckStore(pointer, sizeof(T), site);
  std::memcpy(pointer, &value, sizeof(T));
}

// The value before the addition. Relaxed.
template <class T>
T AtomicAdd(T* pointer, std::type_identity_t<T> value, Site site = Site::current()) {
  internal::CheckStore(pointer, sizeof(T), site);
  return std::atomic_ref<T>(*pointer).fetch_add(value);
}
// Waits, in global memory and across blocks, until *pointer is `value` (ld.acquire); the release
// half makes the running thread's writes visible first.
inline void SpinUntil(const int32_t* pointer, int32_t value, Site site = Site::current()) {
  internal::CheckLoad(pointer, sizeof value, site);
  const auto now = [&] { return std::atomic_ref<const int32_t>(*pointer).load(); };
  Block::Current().WaitUntil(
      "a spin on global memory", nullptr, [&] { return now() == value; },
      [&] { return std::to_string(now()) + ", wants " + std::to_string(value); }, site);
}
inline void StoreRelease(int32_t* pointer, int32_t value, Site site = Site::current()) {
  internal::CheckStore(pointer, sizeof value, site);
  std::atomic_ref<int32_t>(*pointer).store(value);
}

// --- cp.async -----------------------------------------------------------------------------------

// Sixteen bytes from global to shared memory, the first `valid` copied and zeros after them. What
// `source` points to is not touched when valid is 0.
inline void CopyAsync16(void* shared, const void* source, int valid, Site site = Site::current()) {
  Block& block = Block::Current();
  block.shared.CheckRange(shared, 16, 16, "cp.async", site);
  const int64_t offset = block.shared.Offset(shared);
  block.banks.Note(block.current_thread(), offset, 16, site);
  block.copies.Issue(offset, source, 16, valid, site);
}
inline void CopyAsyncCommit() { Block::Current().copies.Commit(); }
// Until at most kGroups of this thread's newest groups are under way.
template <int kGroups>
void CopyAsyncWait() {
  Block::Current().copies.Wait(kGroups);
}

// --- matrices -----------------------------------------------------------------------------------

// ldmatrix: n 8x8 matrices of 16-bit elements; lane 8 i + r points at row r of matrix i.
// registers[i] of lane l: elements (l / 4, 2 (l mod 4)) and its right neighbour, of the transposed
// matrix in the second form.
void LoadMatrix(uint32_t (&registers)[4], const void* row, Site site = Site::current());
void LoadMatrix(uint32_t (&registers)[2], const void* row, Site site = Site::current());
void LoadMatrixTransposed(uint32_t (&registers)[4], const void* row, Site site = Site::current());
void LoadMatrixTransposed(uint32_t (&registers)[2], const void* row, Site site = Site::current());

// mma.sync.m16n8k16: C[16, 8] += A[16, 16] B[16, 8]. Lane l with g = l / 4, t = l mod 4 holds
// A rows g, g+8 and columns 2t, 2t+1 (+8): a = {(g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8)} as
// pairs; B rows 2t, 2t+1 (+8) of column g: {b0, b1}; C (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
template <class T>
void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         Site site = Site::current());

// --- arithmetic ---------------------------------------------------------------------------------

// Two T in one register, `low` first in memory.
template <class T>
uint32_t PackPair(float low, float high) {
  return Encode<T>(low) | uint32_t{Encode<T>(high)} << 16;
}
template <class T>
float ToFloat(T value) {
  return Decode<T>(value.bits);
}
template <class T>
T FromFloat(float value) {
  return T(value);
}
inline float Exp2(float x) { return std::exp2(x); }  // ex2.approx: 2 ulp
inline float Log2(float x) { return std::log2(x); }
inline float Tanh(float x) { return std::tanh(x); }
inline float Max(float a, float b) { return std::fmax(a, b); }
inline float Infinity() { return std::numeric_limits<float>::infinity(); }
inline float BitsToFloat(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t FloatToBits(float value) { return std::bit_cast<uint32_t>(value); }

}  // namespace varlen::simt
