#include <doctest/doctest.h>

#include "ops/varlen-attention/backward-sm80.h"
#include "ops/varlen-attention/test-backward-device.h"

// The sm_80 backward kernels, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

struct Sm80 : Elements<bfloat16, half> {
  template <class T, int kHeadDim, Gradient kGradient>
  using Kernel = BackwardSm80<T, kHeadDim, kGradient>;
  template <class Kernel, class T>
  static typename Kernel::Params ParamsOf(const BackwardArguments<T>& arguments) {
    return arguments;
  }
};

TEST_CASE("sm_80 backward: ragged lengths agree with the reference on 8 seeds") {
  CheckBackwardRaggedLengths<Sm80>();
}

TEST_CASE("sm_80 backward: every head dimension and both dtypes, odd ones padded inside") {
  CheckBackwardHeadDims<Sm80>({64, 96, 128, 192, 256, 1, 8, 40, 80, 100, 160});
}

TEST_CASE("sm_80 backward: every option agrees with the reference") {
  CheckBackwardOptions<Sm80>({64, 192});
}

TEST_CASE("sm_80 backward: tree masks, with blocks skipped and blocks seen whole") {
  CheckBackwardTrees<Sm80>();
}

TEST_CASE("sm_80 backward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckBackwardGrid<Sm80>({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("sm_80 backward: unaligned memory takes the slow path to the same bits") {
  CheckBackwardUnaligned<Sm80>();
}

TEST_CASE("sm_80 backward: a packed sequence has the bits it has alone") {
  CheckBackwardPacking<Sm80>();
}

TEST_CASE("sm_80 backward: NaN in the neighbours changes no bit of a sequence") {
  CheckBackwardIsolation<Sm80>({64, 96, 256});
}

TEST_CASE("sm_80 backward: no bank conflicts at any head dimension") {
  CheckBackwardBankConflicts<Sm80>();
}

TEST_CASE("sm_80 backward: offsets past 2^31 elements") { CheckBackwardFarOffsets<Sm80>(); }

TEST_CASE("sm_80 backward: how much was run") {
  MESSAGE("2 kernels in 26 instances, ", backward_runs,
          " emulated launches with those of sm_90a, up to ", kSeeds, " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
