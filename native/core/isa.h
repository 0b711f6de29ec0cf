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
// VARLEN_ISA_LEVELS is the set of targets to compile, a sum of 1 (the baseline: x86-64-v2, on
// arm64 NEON; always there), 2 (AVX2 with FMA and F16C) and 4 (AVX-512 F/BW/DQ/VL). A local build
// passes the baseline and the host's level; without a value, or with VARLEN_ALL_ISAS=1 (prebuilds,
// CI), all are compiled.
#if !defined(VARLEN_ISA_LEVELS) || (defined(VARLEN_ALL_ISAS) && VARLEN_ALL_ISAS)
#undef VARLEN_ISA_LEVELS
#define VARLEN_ISA_LEVELS 7
#endif

#if (defined(__x86_64__) || defined(_M_X64)) && !defined(__SSE4_2__)
#error "the baseline is x86-64-v2: compile with -march=x86-64-v2"
#endif

// Highway's SSE4 and above would ask for AES and carry-less multiply, which x86-64-v2 lacks.
#define HWY_DISABLE_PCLMUL_AES
#define HWY_DISABLED_TARGETS                                                   \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   ((VARLEN_ISA_LEVELS & 2) ? 0 : HWY_AVX2) | ((VARLEN_ISA_LEVELS & 4) ? 0 : HWY_AVX3))

#if defined(__x86_64__) && (VARLEN_ISA_LEVELS & 2)
#define VARLEN_IF_AVX2(function) function
#else
#define VARLEN_IF_AVX2(function) nullptr
#endif
#if defined(__x86_64__) && (VARLEN_ISA_LEVELS & 4)
#define VARLEN_IF_AVX512(function) function
#else
#define VARLEN_IF_AVX512(function) nullptr
#endif

// The initialiser of an IsaTable from a function that every target defines. Stands in the
// namespace around HWY_NAMESPACE.
#define VARLEN_ISA_TABLE(function)                                      \
  {                                                                     \
    &HWY_STATIC_NAMESPACE::function, VARLEN_IF_AVX2(&N_AVX2::function), \
        VARLEN_IF_AVX512(&N_AVX3::function)                             \
  }
#if defined(__x86_64__)
#define HWY_STATIC_NAMESPACE N_SSE4
#else
#define HWY_STATIC_NAMESPACE N_NEON
#endif

namespace varlen {

enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512, kNeon };

// "baseline", "avx2", "avx512", "neon": also the words of VARLEN_CPU_ISA.
const char* NameOf(Isa isa);

// False on an x86 older than x86-64-v2: nothing of this library may run there.
bool HostRunsBaseline();
// This binary was compiled for `isa` and this CPU runs it.
bool IsaAvailable(Isa isa);
Isa BestIsa();

// The level in use: the best one, or what VARLEN_CPU_ISA asks for. Asking for one that is not
// available leaves the best; IsaNote() then says so, and is empty otherwise.
Isa ActiveIsa();
std::string IsaNote();
// For tests and benches; false, and no change, when `isa` is not available.
bool UseIsa(Isa isa);

// One function, compiled per target. Empty targets fall back to the baseline, which on arm64 is
// NEON.
template <class Function>
struct IsaTable {
  Function* baseline;
  Function* avx2;
  Function* avx512;

  Function* Get() const {
    switch (ActiveIsa()) {
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
