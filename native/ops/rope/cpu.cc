#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rope/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include <algorithm>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/rope/rope.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::rope {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kPieceElements = 16384;

// Pairs (i, i + half).
template <class T>
HWY_INLINE void RotateHalves(const T* from, const float* cosines, const float* sines,
                             float direction, int64_t half, T* to) {
  const Vector sign = hn::Set(Floats(), direction);
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const Vector x1 = LoadUpTo(from + i, n), x2 = LoadUpTo(from + half + i, n);
    const Vector c = LoadUpTo(cosines + i, n), s = hn::Mul(LoadUpTo(sines + i, n), sign);
    StoreUpTo(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), to + i, n);
    StoreUpTo(hn::MulAdd(x1, s, hn::Mul(x2, c)), to + half + i, n);
  }
}

// Pairs (2i, 2i + 1).
template <class T>
void RotatePairs(const T* from, const float* cosines, const float* sines, float direction,
                 int64_t half, T* to) {
  for (int64_t i = 0; i < half; ++i) {
    const float x1 = static_cast<float>(from[2 * i]), x2 = static_cast<float>(from[2 * i + 1]);
    const float c = cosines[i], s = direction * sines[i];
    to[2 * i] = T(x1 * c - x2 * s);
    to[2 * i + 1] = T(x2 * c + x1 * s);
  }
}

template <class T>
Status Rotate(const Tensor& from, const Tensor& to, const Rotation& rotation, float direction) {
  const int64_t heads = from.shape[1], head_dim = from.shape[2];
  const int64_t rotary_dim = rotation.table.shape[1], half = rotary_dim / 2;
  const int32_t* positions = rotation.position_ids.data();
  const float* table = rotation.table.data<float>();
  const int64_t piece = std::max<int64_t>(1, kPieceElements / (heads * head_dim + 1));
  return ParallelForRange(from.shape[0], piece, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t t = begin; t < end; ++t) {
      const float* cosines = table + positions[t] * rotary_dim;
      const float* sines = cosines + half;
      for (int64_t head = 0; head < heads; ++head) {
        const T* row = from.data<T>() + t * from.strides[0] + head * from.strides[1];
        T* out = to.data<T>() + (t * heads + head) * head_dim;
        if (rotation.interleaved) {
          RotatePairs(row, cosines, sines, direction, half, out);
        } else {
          RotateHalves(row, cosines, sines, direction, half, out);
        }
        std::copy(row + rotary_dim, row + head_dim, out + rotary_dim);
      }
    }
  });
}

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(params.x.dtype, "x", [&]<class Scalar>() {
    return Rotate<Scalar>(params.x, params.out, params.rotation, 1);
  });
}
Status RunBackward(const Backward& params) {
  return DispatchDType<float, bfloat16, half>(params.d_out.dtype, "dOut", [&]<class Scalar>() {
    return Rotate<Scalar>(params.d_out, params.dx, params.rotation, -1);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::rope
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::rope {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::rope
#endif
