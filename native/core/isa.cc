#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace varlen {
namespace {

// Best first.
constexpr Isa kAll[] = {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kNeon, Isa::kBaseline};

bool CpuRuns(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      return HostRunsBaseline();
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case Isa::kAvx512:
      return CpuRuns(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return CpuRuns(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kNeon:
      return false;
  }
  return false;
#else
  return isa == Isa::kNeon || isa == Isa::kBaseline;
#endif
}

bool Compiled(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return (HWY_TARGETS & HWY_AVX2) != 0;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
      return (HWY_TARGETS & HWY_AVX3) != 0;
    default:
      return true;
  }
}

const IsaChoice& InitialChoice() {
  static const IsaChoice choice = ChooseIsa(std::getenv("VARLEN_CPU_ISA"));
  return choice;
}

std::atomic<Isa>& Active() {
  static std::atomic<Isa> active{InitialChoice().isa};
  return active;
}

}  // namespace

const char* NameOf(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512-bf16";
    case Isa::kNeon:
      return "neon";
  }
  return "?";
}

bool HostRunsBaseline() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") &&
         __builtin_cpu_supports("popcnt");
#else
  return true;
#endif
}

bool IsaAvailable(Isa isa) { return Compiled(isa) && CpuRuns(isa); }

Isa BestIsa() {
  for (Isa isa : kAll) {
    if (IsaAvailable(isa)) return isa;
  }
  return Isa::kBaseline;
}

IsaChoice ChooseIsa(const char* asked) {
  const Isa best = BestIsa();
  if (asked == nullptr || *asked == '\0') return {best, ""};
  const std::string request = std::string("VARLEN_CPU_ISA=") + asked;
  for (Isa isa : kAll) {
    if (std::strcmp(asked, NameOf(isa)) != 0) continue;
    if (IsaAvailable(isa)) return {isa, ""};
    const char* reason =
        CpuRuns(isa) ? " was not compiled into this binary" : " is not in this CPU";
    return {best, request + reason + "; using " + NameOf(best)};
  }
  return {best,
          request + " is none of baseline, avx2, avx512, avx512-bf16, neon; using " + NameOf(best)};
}

Isa ActiveIsa() { return Active().load(std::memory_order_relaxed); }

std::string IsaNote() { return InitialChoice().note; }

bool UseIsa(Isa isa) {
  if (!IsaAvailable(isa)) return false;
  Active().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace varlen
