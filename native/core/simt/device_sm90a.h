#pragma once

#include <cstdint>

#include "core/simt/device.h"
#include "core/simt/device_wgmma.h"
#include "core/simt/tensor_map.h"

// The device back end of the sm_90a instructions. What each does is said in host_sm90a.h. Compiles
// for every architecture (a template that is not used is not assembled); runs on sm_90a.
namespace varlen::simt {

SIMT_FN bool ElectOne() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(elected));
  return elected != 0;
}

SIMT_FN void StoreMatrix(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   internal::SharedAddress(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// --- mbarrier -----------------------------------------------------------------------------------

SIMT_FN void MBarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(internal::SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
SIMT_FN void MBarrierInvalidate(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(internal::SharedAddress(barrier))
               : "memory");
}
SIMT_FN void FenceMBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
SIMT_FN void MBarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(internal::SharedAddress(barrier))
               : "memory");
}
SIMT_FN void MBarrierArriveExpect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   internal::SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
SIMT_FN void MBarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(
          internal::SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// --- async proxy --------------------------------------------------------------------------------

SIMT_FN void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRank>
SIMT_FN void TmaLoad(void* shared, const TensorMap& map, uint64_t* barrier,
                     const int32_t (&at)[kRank]) {
  const uint32_t tile = internal::SharedAddress(shared);
  const uint32_t done = internal::SharedAddress(barrier);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3}], [%2];" ::"r"(tile),
        "l"(&map), "r"(done), "r"(at[0])
        : "memory");
  }
  if constexpr (kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(tile),
        "l"(&map), "r"(done), "r"(at[0]), "r"(at[1])
        : "memory");
  }
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(tile),
        "l"(&map), "r"(done), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  }
  if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(tile),
        "l"(&map), "r"(done), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  }
  if constexpr (kRank == 5) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(tile),
        "l"(&map), "r"(done), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  }
}
template <int kRank>
SIMT_FN void TmaStore(const TensorMap& map, const void* shared, const int32_t (&at)[kRank]) {
  const uint32_t tile = internal::SharedAddress(shared);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
        "r"(tile), "r"(at[0])
        : "memory");
  }
  if constexpr (kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1])
        : "memory");
  }
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            &map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  }
  if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  }
  if constexpr (kRank == 5) {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::
            "l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  }
}
template <int kRank>
SIMT_FN void TmaReduceAdd(const TensorMap& map, const void* shared, const int32_t (&at)[kRank]) {
  const uint32_t tile = internal::SharedAddress(shared);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.bulk_group [%0, {%2}], [%1];" ::"l"(
            &map),
        "r"(tile), "r"(at[0])
        : "memory");
  }
  if constexpr (kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::
            "l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1])
        : "memory");
  }
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], "
        "[%1];" ::"l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  }
  if constexpr (kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4, %5}], "
        "[%1];" ::"l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  }
  if constexpr (kRank == 5) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4, %5, "
        "%6}], [%1];" ::"l"(&map),
        "r"(tile), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  }
}
SIMT_FN void BulkCommit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kGroups>
SIMT_FN void BulkWait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

// --- wgmma --------------------------------------------------------------------------------------

SIMT_FN uint64_t MatrixDescriptor(const void* tile, int leading, int stride, Swizzle swizzle) {
  const uint64_t layout = swizzle == Swizzle::kNone       ? 0
                          : swizzle == Swizzle::k128Bytes ? 1
                          : swizzle == Swizzle::k64Bytes  ? 2
                                                          : 3;
  return static_cast<uint64_t>((internal::SharedAddress(tile) & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         layout << 62;
}
SIMT_FN void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SIMT_FN void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroups>
SIMT_FN void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// The compiler may not move reads or writes of these registers over this line. It does not know
// that a wgmma reads and writes its registers until it is waited for: to stand before wgmma.fence
// and after wait_group.
template <int kCount>
SIMT_FN void PinRegisters(float (&registers)[kCount]) {
  SIMT_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kRows, int kColumns>
SIMT_FN void PinRegisters(uint32_t (&registers)[kRows][kColumns]) {
  SIMT_UNROLL
  for (int i = 0; i < kRows * kColumns; ++i) {
    asm volatile("" : "+r"(registers[i / kColumns][i % kColumns])::"memory");
  }
}

template <class T, int kN, bool kTransposeB = false, bool kTransposeA = false>
SIMT_FN void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  internal::WgmmaPtx<T, kN>::template FromShared<kTransposeA, kTransposeB>(d, a, b, accumulate);
}
template <class T, int kN, bool kTransposeB = false>
SIMT_FN void Wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  internal::WgmmaPtx<T, kN>::template FromRegisters<kTransposeB>(d, a, b, accumulate);
}

// --- registers ----------------------------------------------------------------------------------

template <int kRegisters>
SIMT_FN void DecreaseRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SIMT_FN void IncreaseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace varlen::simt
