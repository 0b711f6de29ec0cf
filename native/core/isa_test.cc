#include "core/isa.h"

#include "doctest/doctest.h"

namespace varlen {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kNeon};

TEST_CASE("The baseline is always there and the best level is available") {
  CHECK(HostRunsBaseline());
  CHECK(IsaAvailable(Isa::kBaseline));
  CHECK(IsaAvailable(BestIsa()));
}

TEST_CASE("An available level is used when it is asked for by name") {
  for (Isa isa : kAll) {
    if (!IsaAvailable(isa)) continue;
    const IsaChoice choice = ChooseIsa(NameOf(isa));
    CHECK(choice.isa == isa);
    CHECK(choice.note.empty());
  }
}

TEST_CASE("A level that is not available leaves the best one and is reported") {
  for (Isa isa : kAll) {
    if (IsaAvailable(isa)) continue;
    const IsaChoice choice = ChooseIsa(NameOf(isa));
    CHECK(choice.isa == BestIsa());
    CHECK(choice.note.find(NameOf(isa)) != std::string::npos);
    CHECK(choice.note.find("using") != std::string::npos);
  }
}

TEST_CASE("A word that names no level is reported with the words that do") {
  const IsaChoice choice = ChooseIsa("avx9000");
  CHECK(choice.isa == BestIsa());
  CHECK(choice.note == std::string("VARLEN_CPU_ISA=avx9000 is none of baseline, avx2, avx512, "
                                   "avx512-bf16, neon; using ") +
                           NameOf(BestIsa()));
}

TEST_CASE("No word means the best level, without a note") {
  for (const char* asked : {static_cast<const char*>(nullptr), ""}) {
    CHECK(ChooseIsa(asked).isa == BestIsa());
    CHECK(ChooseIsa(asked).note.empty());
  }
}

TEST_CASE("UseIsa changes the level only to one that is available") {
  const Isa before = ActiveIsa();
  for (Isa isa : kAll) {
    const Isa active = ActiveIsa();
    CHECK(UseIsa(isa) == IsaAvailable(isa));
    CHECK(ActiveIsa() == (IsaAvailable(isa) ? isa : active));
  }
  REQUIRE(UseIsa(before));
}

}  // namespace
}  // namespace varlen
