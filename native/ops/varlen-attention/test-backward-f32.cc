#include <doctest/doctest.h>

#include "ops/varlen-attention/backward-sm80.h"
#include "ops/varlen-attention/test-backward-device.h"

// The backward kernels of float32, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

struct F32 : Elements<float> {
  template <class T, int kHeadDim, Gradient kGradient>
  using Kernel = BackwardSm80<T, kHeadDim, kGradient>;
  template <class Kernel, class T>
  static const BackwardArguments<T>& ParamsOf(const BackwardArguments<T>& arguments) {
    return arguments;
  }
};

TEST_CASE("float32 backward: ragged lengths agree with the reference on 8 seeds") {
  CheckBackwardRaggedLengths<F32>();
}

TEST_CASE("float32 backward: every head dimension, odd ones padded inside") {
  CheckBackwardHeadDims<F32>({64, 96, 128, 192, 256, 1, 3, 8, 40, 80, 100, 160});
}

TEST_CASE("float32 backward: every option agrees with the reference") {
  CheckBackwardOptions<F32>({64, 192});
}

TEST_CASE("float32 backward: tree masks, with blocks skipped and blocks seen whole") {
  CheckBackwardTrees<F32>();
}

TEST_CASE("float32 backward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckBackwardGrid<F32>({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("float32 backward: unaligned memory takes the slow path to the same bits") {
  CheckBackwardUnaligned<F32>();
}

TEST_CASE("float32 backward: a packed sequence has the bits it has alone") {
  CheckBackwardPacking<F32>();
}

TEST_CASE("float32 backward: NaN in the neighbours changes no bit of a sequence") {
  CheckBackwardIsolation<F32>({64, 96, 256});
}

TEST_CASE("float32 backward: no bank conflicts at any head dimension") {
  CheckBackwardBankConflicts<F32>();
}

TEST_CASE("float32 backward: how much was run") {
  MESSAGE("2 kernels in 13 instances, ", backward_runs,
          " emulated launches with those of other dtypes, up to ", kSeeds, " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
