// The CPU implementation of Merge and its gradient: rows of two results, compiled per instruction
// set.
#include <cmath>

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse-prefill/cpu-merge.cc"
#include "hwy/foreach_target.h"
//
#include "ops/sparse-prefill/tile-inl.h"
//
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sparse_prefill {
namespace HWY_NAMESPACE {

// lse of both together, and what each of two results counts for.
struct Shares {
  float lse, first, second;

  Shares(float lse1, float lse2) {
    const float top = std::max(lse1, lse2);
    lse = top == -kInfinity ? -kInfinity : top + std::log1p(std::exp(-std::abs(lse1 - lse2)));
    first = lse == -kInfinity ? 0.0f : std::exp(lse1 - lse);
    second = lse == -kInfinity ? 0.0f : std::exp(lse2 - lse);
  }
};

// `n` elements, at most a vector.
template <class T>
HWY_INLINE Vector LoadSome(const T* from, int64_t n) {
  return n == kLanes ? LoadAsFloat(from) : LoadFirst(from, n);
}

template <class T>
Status MergeStates(const Merge& params) {
  const int64_t rows = params.out.shape[0], heads = params.out.shape[1], dim = params.out.shape[2];
  return ParallelFor(heads, [&](int64_t head, int) HWY_ATTR {
    const Floats d;
    for (int64_t row = 0; row < rows; ++row) {
      const float l1 = params.lse1.data<float>()[head * rows + row];
      const float l2 = params.lse2.data<float>()[head * rows + row];
      const Shares shares(l1, l2);
      const T* from1 = ElementAt<T>(params.out1, row, head);
      const T* from2 = ElementAt<T>(params.out2, row, head);
      T* to = ElementAt<T>(params.out, row, head);
      for (int64_t i = 0; i < dim; i += kLanes) {
        const int64_t n = std::min(kLanes, dim - i);
        const Vector a = LoadSome(from1 + i, n), b = LoadSome(from2 + i, n);
        // Both orders of the two products, so that swapping the states changes no bit.
        const Vector u = hn::Set(d, shares.first), v = hn::Set(d, shares.second);
        const Vector twice =
            hn::Add(hn::MulAdd(a, u, hn::Mul(b, v)), hn::MulAdd(b, v, hn::Mul(a, u)));
        const Vector sum = hn::Mul(twice, hn::Set(d, 0.5f));
        StoreFirst(sum, to + i, n);
      }
      params.softmax_lse.data<float>()[head * rows + row] = shares.lse;
    }
  });
}

Status RunMerge(const Merge& params) {
  return DispatchDType<float, bfloat16, half>(
      params.out.dtype, "out1", [&]<class Scalar>() { return MergeStates<Scalar>(params); });
}

template <class T>
Status DifferentiateMerge(const MergeBackward& params) {
  const int64_t rows = params.d_out.shape[0], heads = params.d_out.shape[1];
  const int64_t dim = params.d_out.shape[2];
  return ParallelFor(heads, [&](int64_t head, int) HWY_ATTR {
    const Floats d;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = head * rows + row;
      const Shares shares(params.lse1.data<float>()[at], params.lse2.data<float>()[at]);
      const T* d_out = ElementAt<T>(params.d_out, row, head);
      const T* out1 = ElementAt<T>(params.out1, row, head);
      const T* out2 = ElementAt<T>(params.out2, row, head);
      T* d_out1 = ElementAt<T>(params.d_out1, row, head);
      T* d_out2 = ElementAt<T>(params.d_out2, row, head);
      Vector apart = hn::Zero(d);  // dout . (out1 - out2)
      for (int64_t i = 0; i < dim; i += kLanes) {
        const int64_t n = std::min(kLanes, dim - i);
        const Vector gradient = LoadSome(d_out + i, n);
        apart = hn::MulAdd(gradient, hn::Sub(LoadSome(out1 + i, n), LoadSome(out2 + i, n)), apart);
        StoreFirst(hn::Mul(gradient, hn::Set(d, shares.first)), d_out1 + i, n);
        StoreFirst(hn::Mul(gradient, hn::Set(d, shares.second)), d_out2 + i, n);
      }
      const float both = shares.first * shares.second;
      // One side alone: the other's rows, whatever they hold, say nothing.
      const float moved = both == 0 ? 0.0f : both * hn::GetLane(hn::SumOfLanes(d, apart));
      const float d_lse = params.d_lse ? params.d_lse.data<float>()[at] : 0.0f;
      params.d_lse1.data<float>()[at] = shares.first * d_lse + moved;
      params.d_lse2.data<float>()[at] = shares.second * d_lse - moved;
    }
  });
}

Status RunMergeBackward(const MergeBackward& params) {
  return DispatchDType<float, bfloat16, half>(params.d_out.dtype, "dOut", [&]<class Scalar>() {
    return DifferentiateMerge<Scalar>(params);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sparse_prefill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sparse_prefill {
namespace {
constexpr IsaTable<Status(const Merge&)> kMerge = VARLEN_ISA_TABLE(RunMerge);
constexpr IsaTable<Status(const MergeBackward&)> kMergeBackward =
    VARLEN_ISA_TABLE(RunMergeBackward);
}  // namespace

Status RunCpu(const Merge& params) { return kMerge.Get()(params); }
Status RunCpu(const MergeBackward& params) { return kMergeBackward.Get()(params); }

}  // namespace varlen::sparse_prefill
#endif
