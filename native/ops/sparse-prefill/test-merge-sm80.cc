#include <cmath>
#include <limits>
#include <vector>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/sparse-prefill/merge-backward-device.h"
#include "ops/sparse-prefill/test-merge-case.h"

// The kernel of a merge's gradient, run by the host emulator, against the float64 reference.
namespace varlen::sparse_prefill {
namespace {

using namespace varlen::testing;

template <class T>
std::vector<Tensor> Emulated(const MergeBackward& op, uint64_t seed, int64_t blocks) {
  using Kernel = DeviceMergeGradients<T>;
  const int64_t rows = op.d_out.shape[0], heads = op.d_out.shape[1], dim = op.d_out.shape[2];
  const auto d_out = Upload<T>(op.d_out), out1 = Upload<T>(op.out1), out2 = Upload<T>(op.out2);
  const auto lse1 = Upload<float>(op.lse1), lse2 = Upload<float>(op.lse2),
             d_lse = Upload<float>(op.d_lse);
  const simt::GlobalArray<T> d_out1(rows * heads * dim), d_out2(rows * heads * dim);
  const simt::GlobalArray<float> d_lse1(rows * heads), d_lse2(rows * heads);
  const auto rows_of = [&](const simt::GlobalArray<T>& array) {
    return typename Kernel::Rows{array.data(), heads * dim, dim};
  };
  Emulate<Kernel>(blocks,
                  {rows_of(d_out), rows_of(out1), rows_of(out2), lse1.data(), lse2.data(),
                   Given(d_lse), rows, heads, dim, d_out1.data(), d_out2.data(), d_lse1.data(),
                   d_lse2.data(), dim * sizeof(T) % 16 == 0},
                  seed);
  return {Download(d_out1), Download(d_lse1), Download(d_out2), Download(d_lse2)};
}

template <class T>
void Check(int64_t dim, bool with_d_lse) {
  MergeBackward op = MergeBackwardOf(MergeOf(DTypeOf<T>::value, 23, 3, dim));
  if (!with_d_lse) op.d_lse = {};
  const auto want = ReferenceOutputs(op), got = Emulated<T>(op, 1, 2);
  for (size_t i = 0; i < want.size(); ++i) CHECK(Difference(got[i], want[i], 2e-5) == "");
  for (uint64_t seed = 2; seed < 8; ++seed) {
    CHECK(SameBits(Emulated<T>(op, seed, static_cast<int64_t>(seed)), got));
  }
}

TEST_CASE("CUDA merge gradients agree with the reference, in any order and grid") {
  for (int64_t dim : {8, 37, 300}) {
    Check<float>(dim, true);
    Check<bfloat16>(dim, false);
    Check<half>(dim, true);
  }
}

TEST_CASE("CUDA merge gradients: rows without keys have the bits of the CPU") {
  const float none = -std::numeric_limits<float>::infinity();
  Merge merge = MergeOf(DType::kF32, 3, 1, 8);
  merge.lse1.data<float>()[0] = merge.lse1.data<float>()[2] = none;
  merge.lse2.data<float>()[1] = merge.lse2.data<float>()[2] = none;
  Set(merge.out1, 0, NAN);  // of a row that lse1 says is none
  const MergeBackward op = MergeBackwardOf(merge);
  CHECK(SameBits(Emulated<float>(op, 1, 1), Outputs(op)));
}

}  // namespace
}  // namespace varlen::sparse_prefill
