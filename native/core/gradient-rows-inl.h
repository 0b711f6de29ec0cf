// Rows that the backward pass of an attention reads and writes. Included once per target.
#if defined(VARLEN_CORE_GRADIENT_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_GRADIENT_ROWS_INL_H_
#undef VARLEN_CORE_GRADIENT_ROWS_INL_H_
#else
#define VARLEN_CORE_GRADIENT_ROWS_INL_H_
#endif

#include <cstdint>

#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// a . b of n elements, in float32.
template <class T>
HWY_INLINE float DotRows(const T* a, const T* b, int64_t n) {
  const Floats d;
  Vector sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sum = hn::MulAdd(LoadAsFloat(a + i), LoadAsFloat(b + i), sum);
  }
  if (i < n) sum = hn::MulAdd(LoadFirst(a + i, n - i), LoadFirst(b + i, n - i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Narrows n elements times `scale`; the last vector of `from` is readable as a whole.
template <class T>
HWY_INLINE void StoreScaledRow(const float* from, int64_t n, float scale, T* to) {
  const Floats d;
  const Vector factor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    StoreFromFloat(hn::Mul(hn::LoadU(d, from + i), factor), to + i);
  }
  if (i < n) StoreFirst(hn::Mul(hn::LoadU(d, from + i), factor), to + i, n - i);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_GRADIENT_ROWS_INL_H_
