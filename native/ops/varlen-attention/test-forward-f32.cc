#include <doctest/doctest.h>

#include "ops/varlen-attention/forward-sm80.h"
#include "ops/varlen-attention/test-forward-device.h"

// The forward kernel of float32, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

struct F32 : Elements<float> {
  template <class T, int kHeadDim>
  using Kernel = ForwardSm80<T, kHeadDim>;
  template <class Kernel, class T>
  static const ForwardArguments<T>& ParamsOf(const ForwardArguments<T>& arguments, const Case&) {
    return arguments;
  }
};

TEST_CASE("float32 forward: ragged lengths agree with the reference on 8 seeds") {
  CheckRaggedLengths<F32>();
}

TEST_CASE("float32 forward: every head dimension, odd ones padded inside") {
  CheckHeadDims<F32>({64, 96, 128, 192, 256, 1, 3, 8, 40, 80, 100, 160});
}

TEST_CASE("float32 forward: every option agrees with the reference") { CheckOptions<F32>(); }

TEST_CASE("float32 forward: tree masks, with blocks skipped and blocks seen whole") {
  CheckTrees<F32>();
}

TEST_CASE("float32 forward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckGrid<F32>({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("float32 forward: a packed sequence has the bits it has alone") { CheckPacking<F32>(); }

TEST_CASE("float32 forward: no bank conflicts at any head dimension") { CheckBankConflicts<F32>(); }

TEST_CASE("float32 forward: keys in splits agree with the reference, whatever their number") {
  CheckSplits<F32>();
}

TEST_CASE("float32 forward: a sequence's own splits depend on nothing else in the pack") {
  CheckOwnSplits<F32>();
}

TEST_CASE("float32 forward: unaligned memory takes the slow path to the same bits") {
  CheckUnaligned<F32>();
}

TEST_CASE("float32 forward: how much was run") {
  MESSAGE("1 kernel in 5 instances, ", kernel_runs,
          " emulated launches with those of other dtypes, up to ", kSeeds, " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
