// Vectors of float32 for one instruction set: loads and stores of every storage type, exp2, tanh.
// Included once per target, after core/isa.h and Highway's foreach_target.h.
#if defined(VARLEN_CORE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_SIMD_INL_H_
#undef VARLEN_CORE_SIMD_INL_H_
#else
#define VARLEN_CORE_SIMD_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;
inline constexpr int64_t kLanes = hn::MaxLanes(Floats());  // all our targets have a fixed size

// Element types that convert in registers. Below AVX2 x86 has no float16 instructions.
inline constexpr bool kHasF16 =
    HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON;

HWY_INLINE Vector LoadAsFloat(const float* from) { return hn::LoadU(Floats(), from); }

HWY_INLINE Vector LoadAsFloat(const bfloat16* from) {
  const hn::Rebind<uint16_t, Floats> du16;
  const hn::RebindToUnsigned<Floats> du32;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

HWY_INLINE Vector LoadAsFloat(const half* from) {
  if constexpr (kHasF16) {
    const hn::Rebind<hwy::float16_t, Floats> df16;
    return hn::PromoteTo(Floats(), hn::LoadU(df16, reinterpret_cast<const hwy::float16_t*>(from)));
  } else {
    HWY_ALIGN float wide[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) wide[i] = static_cast<float>(from[i]);
    return hn::Load(Floats(), wide);
  }
}

HWY_INLINE void StoreFromFloat(Vector v, float* to) { hn::StoreU(v, Floats(), to); }

// Round to nearest, ties to even; a NaN becomes quiet: as dtype.h does it.
HWY_INLINE void StoreFromFloat(Vector v, bfloat16* to) {
  const hn::RebindToUnsigned<Floats> du32;
  const hn::RebindToSigned<Floats> di32;
  const hn::Rebind<uint16_t, Floats> du16;
  const auto bits = hn::BitCast(du32, v);
  const auto high = hn::ShiftRight<16>(bits);
  const auto even = hn::And(high, hn::Set(du32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du32, 0x7fff)), even));
  const auto is_nan = hn::RebindMask(du32, hn::IsNaN(v));
  const auto result = hn::IfThenElse(is_nan, hn::Or(high, hn::Set(du32, 0x40)), rounded);
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, result)), du16, reinterpret_cast<uint16_t*>(to));
}

HWY_INLINE void StoreFromFloat(Vector v, half* to) {
  if constexpr (kHasF16) {
    const hn::Rebind<hwy::float16_t, Floats> df16;
    hn::StoreU(hn::DemoteTo(df16, v), df16, reinterpret_cast<hwy::float16_t*>(to));
  } else {
    HWY_ALIGN float wide[kLanes];
    hn::Store(v, Floats(), wide);
    for (int64_t i = 0; i < kLanes; ++i) to[i] = half(wide[i]);
  }
}

// The first n < kLanes elements; the other lanes are zero and their memory is not touched.
template <class T>
HWY_INLINE Vector LoadFirst(const T* from, int64_t n) {
  T padded[kLanes] = {};
  std::memcpy(static_cast<void*>(padded), from, static_cast<size_t>(n) * sizeof(T));
  return LoadAsFloat(padded);
}
template <class T>
HWY_INLINE void StoreFirst(Vector v, T* to, int64_t n) {
  T padded[kLanes];
  StoreFromFloat(v, padded);
  std::memcpy(static_cast<void*>(to), padded, static_cast<size_t>(n) * sizeof(T));
}

// 2^x. Minimax polynomial of 2^f on |f| <= 1/2 (coefficients: Remez, relative error 7.5e-8 for
// degree 5 and 1.9e-9 for degree 6), scaled by 2^round(x). Exactly 0 below -126 (no subnormals:
// some CPUs multiply them a hundred times slower), infinity above 128, NaN stays NaN.
template <int kDegree>
HWY_INLINE Vector Exp2(Vector x) {
  static_assert(kDegree == 5 || kDegree == 6);
  const Floats d;
  const auto tiny = hn::Lt(x, hn::Set(d, -126.0f));
  // Max and Min return their second operand when one is NaN (x86).
  const Vector clamped = hn::Min(hn::Set(d, 129.0f), hn::Max(hn::Set(d, -126.0f), x));
  const Vector whole = hn::Round(clamped);
  const Vector f = hn::Sub(clamped, whole);
  Vector p;
  if constexpr (kDegree == 5) {
    p = hn::MulAdd(hn::Set(d, 0.0013276472f), f, hn::Set(d, 0.0096755410f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.05550713f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.24022120f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.69314694f));
    p = hn::MulAdd(p, f, hn::Set(d, 1.00000012f));
  } else {
    p = hn::MulAdd(hn::Set(d, 0.00015345812f), f, hn::Set(d, 0.0013399931f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.0096184891f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.05550329f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.24022646f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.69314718f));
    p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  }
#if HWY_TARGET == HWY_AVX3
  const Vector scaled{_mm512_scalef_ps(p.raw, whole.raw)};
#else
  // 2^128 has no exponent field of its own: two halves.
  const hn::RebindToSigned<Floats> di32;
  const auto n = hn::ConvertTo(di32, whole);
  const auto half_n = hn::ShiftRight<1>(n);
  const auto power = [&](decltype(n) e) HWY_ATTR {
    return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(e, hn::Set(di32, 127))));
  };
  const Vector scaled = hn::Mul(hn::Mul(p, power(half_n)), power(hn::Sub(n, half_n)));
#endif
  return hn::IfThenZeroElse(tiny, scaled);
}

// tanh(x), relative error about 1e-7: x + x^3 P(x^2) below 0.625 (own least-squares minimax fit),
// 1 - 2 / (e^(2x) + 1) above.
HWY_INLINE Vector Tanh(Vector x) {
  const Floats d;
  const Vector magnitude = hn::Abs(x);
  const Vector square = hn::Mul(x, x);
  Vector p = hn::MulAdd(hn::Set(d, -0.00606187224f), square, hn::Set(d, 0.020974555f));
  p = hn::MulAdd(p, square, hn::Set(d, -0.0538465181f));
  p = hn::MulAdd(p, square, hn::Set(d, 0.133327441f));
  p = hn::MulAdd(p, square, hn::Set(d, -0.333333287f));
  const Vector small = hn::MulAdd(hn::Mul(x, square), p, x);
  const Vector exp = Exp2<6>(hn::Mul(magnitude, hn::Set(d, 2.8853900817779268f)));  // 2 log2(e)
  const Vector one = hn::Set(d, 1.0f);
  const Vector large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(exp, one)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, hn::CopySign(large, x));
}

// Transposes a square of kLanes x 4: lane r of out[c] is element (r, c) of the row-major `from`.
// Each vector is put together from 4-float blocks, so that the rest happens inside blocks.
template <class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const float* from, int64_t block_stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> dh;
    constexpr int64_t kHalfBlocks = static_cast<int64_t>(hn::MaxLanes(D())) / 8;
    return hn::Combine(d, LoadBlocks(dh, from + kHalfBlocks * block_stride, block_stride),
                       LoadBlocks(dh, from, block_stride));
  }
}
HWY_INLINE void TransposeRows(const float* from, int64_t row_stride, float* to, int64_t to_stride) {
  const Floats d;
  const Vector r0 = LoadBlocks(d, from, 4 * row_stride);
  const Vector r1 = LoadBlocks(d, from + row_stride, 4 * row_stride);
  const Vector r2 = LoadBlocks(d, from + 2 * row_stride, 4 * row_stride);
  const Vector r3 = LoadBlocks(d, from + 3 * row_stride, 4 * row_stride);
  const Vector even_low = hn::InterleaveLower(d, r0, r2);
  const Vector odd_low = hn::InterleaveLower(d, r1, r3);
  const Vector even_high = hn::InterleaveUpper(d, r0, r2);
  const Vector odd_high = hn::InterleaveUpper(d, r1, r3);
  hn::StoreU(hn::InterleaveLower(d, even_low, odd_low), d, to);
  hn::StoreU(hn::InterleaveUpper(d, even_low, odd_low), d, to + to_stride);
  hn::StoreU(hn::InterleaveLower(d, even_high, odd_high), d, to + 2 * to_stride);
  hn::StoreU(hn::InterleaveUpper(d, even_high, odd_high), d, to + 3 * to_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_SIMD_INL_H_
