#pragma once

#include <cstdint>

#include "core/simt/device.h"

// wgmma.mma_async.m64nNk16 names every accumulator register in its text, so each N is a statement
// of its own. The macros below write the register lists; one line per N at the end.
namespace varlen::simt::internal {

template <class T, int kN>
struct WgmmaPtx;

#define SIMT_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SIMT_REGISTERS_16 SIMT_REGISTERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SIMT_REGISTERS_24 SIMT_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SIMT_REGISTERS_32 SIMT_REGISTERS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SIMT_REGISTERS_40 SIMT_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SIMT_REGISTERS_48 SIMT_REGISTERS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SIMT_REGISTERS_56 SIMT_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SIMT_REGISTERS_64 SIMT_REGISTERS_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SIMT_REGISTERS_72 SIMT_REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SIMT_REGISTERS_80 SIMT_REGISTERS_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SIMT_REGISTERS_88 SIMT_REGISTERS_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SIMT_REGISTERS_96 SIMT_REGISTERS_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SIMT_REGISTERS_104 SIMT_REGISTERS_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SIMT_REGISTERS_112 SIMT_REGISTERS_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SIMT_REGISTERS_120 SIMT_REGISTERS_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SIMT_REGISTERS_128 SIMT_REGISTERS_120 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define SIMT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIMT_D8(i) SIMT_D4(i), SIMT_D4(i + 4)
#define SIMT_ACCUMULATORS_8 SIMT_D8(0)
#define SIMT_ACCUMULATORS_16 SIMT_ACCUMULATORS_8, SIMT_D8(8)
#define SIMT_ACCUMULATORS_24 SIMT_ACCUMULATORS_16, SIMT_D8(16)
#define SIMT_ACCUMULATORS_32 SIMT_ACCUMULATORS_24, SIMT_D8(24)
#define SIMT_ACCUMULATORS_40 SIMT_ACCUMULATORS_32, SIMT_D8(32)
#define SIMT_ACCUMULATORS_48 SIMT_ACCUMULATORS_40, SIMT_D8(40)
#define SIMT_ACCUMULATORS_56 SIMT_ACCUMULATORS_48, SIMT_D8(48)
#define SIMT_ACCUMULATORS_64 SIMT_ACCUMULATORS_56, SIMT_D8(56)
#define SIMT_ACCUMULATORS_72 SIMT_ACCUMULATORS_64, SIMT_D8(64)
#define SIMT_ACCUMULATORS_80 SIMT_ACCUMULATORS_72, SIMT_D8(72)
#define SIMT_ACCUMULATORS_88 SIMT_ACCUMULATORS_80, SIMT_D8(80)
#define SIMT_ACCUMULATORS_96 SIMT_ACCUMULATORS_88, SIMT_D8(88)
#define SIMT_ACCUMULATORS_104 SIMT_ACCUMULATORS_96, SIMT_D8(96)
#define SIMT_ACCUMULATORS_112 SIMT_ACCUMULATORS_104, SIMT_D8(104)
#define SIMT_ACCUMULATORS_120 SIMT_ACCUMULATORS_112, SIMT_D8(112)
#define SIMT_ACCUMULATORS_128 SIMT_ACCUMULATORS_120, SIMT_D8(120)

// R = N / 2 accumulators per thread; p0 .. p6: the operand numbers after them.
#define SIMT_WGMMA(T, type, N, R, p0, p1, p2, p3, p4, p5, p6)                                    \
  template <>                                                                                    \
  struct WgmmaPtx<T, N> {                                                                        \
    template <bool kTransposeA, bool kTransposeB>                                                \
    static SIMT_FN void FromShared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2                                      \
                   ", 0;\n"                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type               \
                   " {" SIMT_REGISTERS_##R "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4     \
                                           ";\n}"                                                \
                   : SIMT_ACCUMULATORS_##R                                                       \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),                          \
                     "n"(static_cast<int>(kTransposeA)), "n"(static_cast<int>(kTransposeB)));    \
    }                                                                                            \
    template <bool kTransposeB>                                                                  \
    static SIMT_FN void FromRegisters(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,     \
                                      bool accumulate) {                                         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5                                      \
                   ", 0;\n"                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type               \
                   " {" SIMT_REGISTERS_##R "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4  \
                                           ", p, 1, 1, %" #p6 ";\n}"                             \
                   : SIMT_ACCUMULATORS_##R                                                       \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                         \
                     "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kTransposeB)));     \
    }                                                                                            \
  };
#define SIMT_WGMMA_BOTH(N, R, ...)                \
  SIMT_WGMMA(bfloat16, "bf16", N, R, __VA_ARGS__) \
  SIMT_WGMMA(half, "f16", N, R, __VA_ARGS__)

SIMT_WGMMA_BOTH(16, 8, 8, 9, 10, 11, 12, 13, 14)
SIMT_WGMMA_BOTH(32, 16, 16, 17, 18, 19, 20, 21, 22)
SIMT_WGMMA_BOTH(48, 24, 24, 25, 26, 27, 28, 29, 30)
SIMT_WGMMA_BOTH(64, 32, 32, 33, 34, 35, 36, 37, 38)
SIMT_WGMMA_BOTH(80, 40, 40, 41, 42, 43, 44, 45, 46)
SIMT_WGMMA_BOTH(96, 48, 48, 49, 50, 51, 52, 53, 54)
SIMT_WGMMA_BOTH(112, 56, 56, 57, 58, 59, 60, 61, 62)
SIMT_WGMMA_BOTH(128, 64, 64, 65, 66, 67, 68, 69, 70)
SIMT_WGMMA_BOTH(144, 72, 72, 73, 74, 75, 76, 77, 78)
SIMT_WGMMA_BOTH(160, 80, 80, 81, 82, 83, 84, 85, 86)
SIMT_WGMMA_BOTH(176, 88, 88, 89, 90, 91, 92, 93, 94)
SIMT_WGMMA_BOTH(192, 96, 96, 97, 98, 99, 100, 101, 102)
SIMT_WGMMA_BOTH(208, 104, 104, 105, 106, 107, 108, 109, 110)
SIMT_WGMMA_BOTH(224, 112, 112, 113, 114, 115, 116, 117, 118)
SIMT_WGMMA_BOTH(240, 120, 120, 121, 122, 123, 124, 125, 126)
SIMT_WGMMA_BOTH(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef SIMT_REGISTERS_8
#undef SIMT_ACCUMULATORS_8
#undef SIMT_REGISTERS_16
#undef SIMT_ACCUMULATORS_16
#undef SIMT_REGISTERS_24
#undef SIMT_ACCUMULATORS_24
#undef SIMT_REGISTERS_32
#undef SIMT_ACCUMULATORS_32
#undef SIMT_REGISTERS_40
#undef SIMT_ACCUMULATORS_40
#undef SIMT_REGISTERS_48
#undef SIMT_ACCUMULATORS_48
#undef SIMT_REGISTERS_56
#undef SIMT_ACCUMULATORS_56
#undef SIMT_REGISTERS_64
#undef SIMT_ACCUMULATORS_64
#undef SIMT_REGISTERS_72
#undef SIMT_ACCUMULATORS_72
#undef SIMT_REGISTERS_80
#undef SIMT_ACCUMULATORS_80
#undef SIMT_REGISTERS_88
#undef SIMT_ACCUMULATORS_88
#undef SIMT_REGISTERS_96
#undef SIMT_ACCUMULATORS_96
#undef SIMT_REGISTERS_104
#undef SIMT_ACCUMULATORS_104
#undef SIMT_REGISTERS_112
#undef SIMT_ACCUMULATORS_112
#undef SIMT_REGISTERS_120
#undef SIMT_ACCUMULATORS_120
#undef SIMT_REGISTERS_128
#undef SIMT_ACCUMULATORS_128
#undef SIMT_D4
#undef SIMT_D8
#undef SIMT_WGMMA
#undef SIMT_WGMMA_BOTH

}  // namespace varlen::simt::internal
