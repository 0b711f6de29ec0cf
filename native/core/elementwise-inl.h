// Vectors of which only the first n lanes count: what ops that go over rows element by element
// share. Included once per target.
#if defined(VARLEN_CORE_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_ELEMENTWISE_INL_H_
#undef VARLEN_CORE_ELEMENTWISE_INL_H_
#else
#define VARLEN_CORE_ELEMENTWISE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// min(n, kLanes) elements; the other lanes are zero.
template <class T>
HWY_INLINE Vector LoadUpTo(const T* from, int64_t n) {
  return n >= kLanes ? LoadAsFloat(from) : LoadFirst(from, n);
}
template <class T>
HWY_INLINE void StoreUpTo(Vector v, T* to, int64_t n) {
  if (n >= kLanes) {
    StoreFromFloat(v, to);
  } else {
    StoreFirst(v, to, n);
  }
}

// to += from, in float32.
template <class T>
HWY_INLINE void AddRow(const T* from, int64_t n, float* to) {
  const Floats d;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::Add(hn::LoadU(d, to + i), LoadAsFloat(from + i)), d, to + i);
  }
  for (; i < n; ++i) to[i] += static_cast<float>(from[i]);
}

HWY_INLINE float SumOf(Vector v) { return hn::GetLane(hn::SumOfLanes(Floats(), v)); }

// 1 / (1 + e^-x), relative error about 1e-7; 0 and 1 far out, without overflow.
HWY_INLINE Vector Sigmoid(Vector x) {
  const Floats d;
  const Vector one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp2<6>(hn::Mul(x, hn::Set(d, -1.44269504088896f)))));
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_ELEMENTWISE_INL_H_
