#pragma once

#include <cstdint>
#include <string>

// Which instruction set the CPU kernels run with, and the settings a SIMD file needs.
//
// A SIMD file is compiled once per target by Highway's foreach_target.h, each time in a namespace
// and with function attributes of its own (no -m flags: an inline function of a shared header must
// never be emitted in AVX-512 form). It includes this header before any Highway header, and exports
// its functions through VARLEN_ISA_TABLE in the part that is compiled once (#if HWY_ONCE).
//
// The build says which targets to compile: HWY_DISABLED_TARGETS holds those it leaves out. A local
// build compiles the baseline (x86-64-v2; on arm64 NEON) and the host's level, prebuilds and CI
// (-DVARLEN_ALL_ISAS=ON) compile all: AVX2 with FMA and F16C, AVX-512 F/BW/DQ/VL. Without the
// macro, as in a compiler call by hand, all are compiled.
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(__SSE4_2__)
#error "the baseline is x86-64-v2: compile with -march=x86-64-v2"
#endif

#if !defined(HWY_DISABLED_TARGETS)
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
#if !defined(HWY_DISABLE_PCLMUL_AES)
#define HWY_DISABLE_PCLMUL_AES  // Highway's SSE4 would ask for what x86-64-v2 lacks
#endif
#include "hwy/detect_targets.h"

#if HWY_TARGETS & HWY_AVX2
#define VARLEN_IF_AVX2(function) function
#else
#define VARLEN_IF_AVX2(function) nullptr
#endif
#if HWY_TARGETS & HWY_AVX3
#define VARLEN_IF_AVX512(function) function
#else
#define VARLEN_IF_AVX512(function) nullptr
#endif
#if HWY_STATIC_TARGET == HWY_SSE4
#define VARLEN_BASELINE N_SSE4
#elif HWY_STATIC_TARGET == HWY_NEON
#define VARLEN_BASELINE N_NEON
#else
#error "no baseline for this compiler's target"
#endif

// The initialiser of an IsaTable from a function that every target defines. Stands in the
// namespace around HWY_NAMESPACE.
#define VARLEN_ISA_TABLE(function)                                 \
  {                                                                \
    &VARLEN_BASELINE::function, VARLEN_IF_AVX2(&N_AVX2::function), \
        VARLEN_IF_AVX512(&N_AVX3::function)                        \
  }

namespace varlen {

// kAvx512Bf16 is kAvx512 and vdpbf16ps, which multiplies two bfloat16 pairs where a float32
// multiply-add does one; only products of bfloat16 differ (gemm-inl.h).
enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kNeon };

// "baseline", "avx2", "avx512", "avx512-bf16", "neon": also the words of VARLEN_CPU_ISA.
const char* NameOf(Isa isa);

// False on an x86 older than x86-64-v2: nothing of this library may run there.
bool HostRunsBaseline();
// This binary was compiled for `isa` and this CPU runs it.
bool IsaAvailable(Isa isa);
Isa BestIsa();

// What VARLEN_CPU_ISA=`asked` leads to (null or empty: the best level). Asking for a level that is
// not available leaves the best, and `note` says why; it is empty otherwise.
struct IsaChoice {
  Isa isa;
  std::string note;
};
IsaChoice ChooseIsa(const char* asked);

// The level in use and its note, from the environment at first use.
Isa ActiveIsa();
std::string IsaNote();
// For tests and benches; false, and no change, when `isa` is not available.
bool UseIsa(Isa isa);

// One function, compiled per target; null where a target is not. On arm64 the baseline is NEON.
template <class Function>
struct IsaTable {
  Function* baseline;
  Function* avx2;
  Function* avx512;

  Function* Get() const {
    switch (ActiveIsa()) {
      case Isa::kAvx512Bf16:
      case Isa::kAvx512:
        return avx512;
      case Isa::kAvx2:
        return avx2;
      default:
        return baseline;
    }
  }
};

}  // namespace varlen
