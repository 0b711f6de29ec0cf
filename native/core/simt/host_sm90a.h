#pragma once

#include <cstdint>

#include "core/simt/host.h"
#include "core/simt/tensor_map.h"

// The host back end of the sm_90a instructions: mbarrier, TMA, wgmma, setmaxnreg.
namespace varlen::simt {

// True in one lane of the warp.
bool ElectOne(Site site = Site::current());

void StoreMatrix(void* row, const uint32_t (&registers)[4], Site site = Site::current());

// --- mbarrier -----------------------------------------------------------------------------------

inline void MBarrierInit(uint64_t* barrier, int arrivals, Site site = Site::current()) {
  Block::Current().mbarriers.Init(barrier, arrivals, site);
}
inline void MBarrierInvalidate(uint64_t* barrier, Site site = Site::current()) {
  Block::Current().mbarriers.Invalidate(barrier, site);
}
// After the initialisation, by the same thread: makes it visible to the async proxy.
inline void FenceMBarrierInit() {
  Block& block = Block::Current();
  block.mbarriers.FenceInit(block.current_thread());
}
inline void MBarrierArrive(uint64_t* barrier, Site site = Site::current()) {
  Block::Current().mbarriers.Arrive(barrier, 0, "mbarrier.arrive", site);
}
inline void MBarrierArriveExpect(uint64_t* barrier, int bytes, Site site = Site::current()) {
  Block::Current().mbarriers.Arrive(barrier, bytes, "mbarrier.arrive.expect_tx", site);
}
// Until the phase of this parity is over. Parity 1 of a fresh barrier passes at once.
inline void MBarrierWait(uint64_t* barrier, int parity, Site site = Site::current()) {
  Block::Current().mbarriers.Wait(barrier, parity, site);
}

// --- async proxy --------------------------------------------------------------------------------

// Orders the running thread's shared stores before later reads by TMA and wgmma.
inline void FenceAsyncProxy() {
  Block& block = Block::Current();
  block.shared.FenceAsync(block.current_thread());
  block.mbarriers.FenceInit(block.current_thread());
}

namespace internal {
void IssueBulk(AsyncCopies::Bulk kind, const TensorMap& map, const void* shared, uint64_t* barrier,
               int rank, const int32_t* at, const Site& site);
}  // namespace internal

// TMA. Coordinates in elements, innermost first; box elements outside the tensor read as zero and
// are not written. A load reports its box's bytes to `barrier`.
template <int kRank>
void TmaLoad(void* shared, const TensorMap& map, uint64_t* barrier, const int32_t (&at)[kRank],
             Site site = Site::current()) {
  internal::IssueBulk(AsyncCopies::Bulk::kLoad, map, shared, barrier, kRank, at, site);
}
// Stores join the running thread's open bulk group.
template <int kRank>
void TmaStore(const TensorMap& map, const void* shared, const int32_t (&at)[kRank],
              Site site = Site::current()) {
  internal::IssueBulk(AsyncCopies::Bulk::kStore, map, shared, nullptr, kRank, at, site);
}
template <int kRank>
void TmaReduceAdd(const TensorMap& map, const void* shared, const int32_t (&at)[kRank],
                  Site site = Site::current()) {
  internal::IssueBulk(AsyncCopies::Bulk::kAdd, map, shared, nullptr, kRank, at, site);
}
inline void BulkCommit() { Block::Current().copies.CommitBulk(); }
// Until at most kGroups of this thread's newest bulk groups are under way.
template <int kGroups>
void BulkWait(Site site = Site::current()) {
  Block::Current().copies.WaitBulk(kGroups, site);
}

// --- wgmma --------------------------------------------------------------------------------------

// Shared-memory matrix descriptor; offsets in bytes between the pieces of the tile, see
// wgmma_queue.cc for what each layout counts.
uint64_t MatrixDescriptor(const void* tile, int leading, int stride, Swizzle swizzle,
                          Site site = Site::current());

void WgmmaFence(Site site = Site::current());
void WgmmaCommit(Site site = Site::current());

namespace internal {
void Wgmma(WgmmaOperands& operands, const Site& site);
void WgmmaWait(int groups, const Site& site);
}  // namespace internal

template <int kGroups>
void WgmmaWait(Site site = Site::current()) {
  internal::WgmmaWait(kGroups, site);
}

// Of accumulators and operands before wgmma.fence and after wait_group: keeps the device's compiler
// from moving their reads and writes over this line. Nothing to do here.
template <int kCount>
void PinRegisters(float (&)[kCount]) {}
template <int kRows, int kColumns>
void PinRegisters(uint32_t (&)[kRows][kColumns]) {}

// wgmma.mma_async.m64nNk16: D[64, kN] = A[64, 16] B[16, kN] (+ D). Register i of thread t of the
// warpgroup: row 16 (t / 32) + (t mod 32) / 4 + 8 (i / 2 mod 2), column 8 (i / 4) + 2 (t mod 4) +
// i mod 2. kTransposeB: B is stored with its N dimension contiguous.
template <class T, int kN, bool kTransposeB = false, bool kTransposeA = false>
void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate,
           Site site = Site::current()) {
  WgmmaOperands operands{d, kN, DTypeOf<T>::value, accumulate,  false, {},
                         a, b,  kTransposeA,       kTransposeB, site};
  internal::Wgmma(operands, site);
}
// A in registers, in the layout of Mma().
template <class T, int kN, bool kTransposeB = false>
void Wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,
           Site site = Site::current()) {
  WgmmaOperands operands{d, kN,    DTypeOf<T>::value, accumulate, true, {a[0], a[1], a[2], a[3]}, 0,
                         b, false, kTransposeB,       site};
  internal::Wgmma(operands, site);
}

// --- registers ----------------------------------------------------------------------------------

// setmaxnreg: all threads of a warpgroup; kRegisters per thread from here on.
template <int kRegisters>
void DecreaseRegisters(Site site = Site::current()) {
  Block::Current().registers.Decrease(kRegisters, site);
}
template <int kRegisters>
void IncreaseRegisters(Site site = Site::current()) {
  Block::Current().registers.Increase(kRegisters, site);
}

}  // namespace varlen::simt
