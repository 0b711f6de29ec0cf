#include <doctest/doctest.h>

#include <string>

#include "ops/varlen-attention/forward-sm90a.h"
#include "ops/varlen-attention/test-forward-device.h"

// The sm_90a forward kernel, run by the host emulator, against the double reference. Rows of k and
// v are multiples of 16 bytes here: others are the sm_80 kernel's, see cuda.cc.
namespace varlen::varlen_attention::testing {
namespace {

struct Sm90a : Elements<bfloat16, half> {
  template <class T, int kHeadDim>
  using Kernel = ForwardSm90a<T, kHeadDim>;
  template <class Kernel, class T>
  static typename Kernel::Params ParamsOf(const ForwardArguments<T>& a, const Case& c) {
    const auto map = [&](const DeviceMatrix<const T>& rows, const Tensor& tensor) {
      return simt::MakeTensorMap(Kernel::Map(rows.data, rows.row, rows.head, tensor.shape[0],
                                             tensor.shape[1], tensor.shape[2]));
    };
    return {a, map(a.k, c.k), map(a.v, c.v)};
  }
};

TEST_CASE("sm_90a forward: ragged lengths agree with the reference on 8 seeds") {
  CheckRaggedLengths<Sm90a>();
}

TEST_CASE("sm_90a forward: every head dimension and both dtypes, odd ones padded inside") {
  CheckHeadDims<Sm90a>({64, 96, 128, 192, 256, 8, 24, 40, 80, 104, 160});
}

TEST_CASE("sm_90a forward: every option agrees with the reference") { CheckOptions<Sm90a>(); }

TEST_CASE("sm_90a forward: tree masks, with blocks skipped and blocks seen whole") {
  CheckTrees<Sm90a>();
}

TEST_CASE("sm_90a forward: the small part of the grid agrees with the reference on 8 seeds") {
  CheckGrid<Sm90a>({64, 96, 128, 192, 256, 40, 104});
}

TEST_CASE("sm_90a forward: a packed sequence has the bits it has alone") { CheckPacking<Sm90a>(); }

TEST_CASE("sm_90a forward: no bank conflicts at any head dimension") {
  CheckBankConflicts<Sm90a>();
}

TEST_CASE("sm_90a forward: how much was run") {
  MESSAGE("1 kernel in 10 instances, ", kernel_runs,
          " emulated launches with those of sm_80, up to ", kSeeds, " seeds");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
