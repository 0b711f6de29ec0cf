#include <doctest/doctest.h>

#include "ops/varlen-attention/test-backward-device.h"

// The backward kernels of float32, run by the host emulator, against the double reference.
namespace varlen::varlen_attention::testing {
namespace {

int kernel_runs = 0;

struct F32 : Elements<float> {
  template <class T, int kHeadDim>
  static simt::LaunchResult Run(const BackwardArguments<T>& arguments, const DeviceRun& run) {
    kernel_runs += kHeadDim <= 128 ? 2 : 3;
    return RunBackwardSm80<T, kHeadDim>(arguments, run);
  }
};
using Tests = BackwardTests<F32>;

TEST_CASE("float32 backward: ragged lengths agree with the reference on 8 seeds") {
  Tests::RaggedLengths();
}

TEST_CASE("float32 backward: every head dimension, odd ones padded inside") {
  Tests::HeadDims({64, 96, 128, 192, 256, 1, 3, 8, 40, 80, 100, 160});
}

TEST_CASE("float32 backward: every option agrees with the reference") { Tests::Options(); }

TEST_CASE("float32 backward: tree masks, with blocks skipped and blocks seen whole") {
  Tests::Trees();
}

TEST_CASE("float32 backward: the small part of the grid agrees with the reference on 8 seeds") {
  Tests::Grid({64, 96, 128, 192, 256, 40, 100});
}

TEST_CASE("float32 backward: unaligned memory takes the slow path to the same bits") {
  Tests::Unaligned();
}

TEST_CASE("float32 backward: a packed sequence has the bits it has alone") { Tests::Packing(); }

TEST_CASE("float32 backward: no bank conflicts at any head dimension") { Tests::BankConflicts(); }

TEST_CASE("float32 backward: how much was run") {
  MESSAGE("2 kernels in 13 instances, ", kernel_runs, " emulated launches, up to ", kSeeds,
          " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
