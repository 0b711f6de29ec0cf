#include <doctest/doctest.h>

#include "ops/varlen-attention/backward-sm90a.h"
#include "ops/varlen-attention/test-backward-device.h"

// The sm_90a backward kernels, run by the host emulator, against the double reference. Rows are
// multiples of 16 bytes here: others are the sm_80 kernels', see cuda.cc.
namespace varlen::varlen_attention::testing {
namespace {

struct Sm90a : Elements<bfloat16, half> {
  template <class T, int kHeadDim, Gradient kGradient>
  using Kernel = BackwardSm90a<T, kHeadDim, kGradient>;
  template <class Kernel, class T>
  static typename Kernel::Params ParamsOf(const BackwardArguments<T>& arguments) {
    REQUIRE(Kernel::Takes(arguments));
    const auto maps = Kernel::Maps(arguments);
    return {arguments, {simt::MakeTensorMap(maps[0]), simt::MakeTensorMap(maps[1])}};
  }
};

TEST_CASE("sm_90a backward: ragged lengths agree with the reference on 8 seeds") {
  CheckBackwardRaggedLengths<Sm90a>();
}

TEST_CASE("sm_90a backward: every head dimension and both dtypes, odd ones padded inside") {
  CheckBackwardHeadDims<Sm90a>({64, 96, 128, 192, 256, 8, 24, 40, 80, 104, 160});
}

TEST_CASE("sm_90a backward: every option agrees with the reference") {
  CheckBackwardOptions<Sm90a>({64, 192});
}

TEST_CASE("sm_90a backward: tree masks, with blocks skipped and blocks seen whole") {
  CheckBackwardTrees<Sm90a>();
}

TEST_CASE("sm_90a backward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckBackwardGrid<Sm90a>({64, 96, 128, 192, 256, 40, 104});
}

TEST_CASE("sm_90a backward: a packed sequence has the bits it has alone") {
  CheckBackwardPacking<Sm90a>();
}

TEST_CASE("sm_90a backward: NaN in the neighbours changes no bit of a sequence") {
  CheckBackwardIsolation<Sm90a>({64, 96, 256});
}

TEST_CASE("sm_90a backward: no bank conflicts at any head dimension") {
  CheckBackwardBankConflicts<Sm90a>();
}

TEST_CASE("sm_90a backward: offsets past 2^31 elements") { CheckBackwardFarOffsets<Sm90a>(); }

TEST_CASE("sm_90a backward: how much was run") {
  MESSAGE("2 kernels in 26 instances, ", backward_runs,
          " emulated launches with those of sm_80, up to ", kSeeds, " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
