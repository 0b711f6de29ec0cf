// exp and log for one instruction set, within 2 ulp; the polynomials are Taylor series, cut where
// the next term is below half an ulp. Included once per target, after core/isa.h and Highway's
// foreach_target.h.
#if defined(VARLEN_CORE_ELEMENTARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_ELEMENTARY_INL_H_
#undef VARLEN_CORE_ELEMENTARY_INL_H_
#else
#define VARLEN_CORE_ELEMENTARY_INL_H_
#endif

#include <limits>

#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// 2^n for whole n from -252 to 254; 2^128 has no exponent field of its own: two halves.
HWY_INLINE Vector ScaleByPower(Vector x, Vector n) {
#if HWY_TARGET == HWY_AVX3
  return Vector{_mm512_scalef_ps(x.raw, n.raw)};
#else
  const Floats d;
  const hn::RebindToSigned<Floats> di32;
  const auto whole = hn::ConvertTo(di32, n);
  const auto half = hn::ShiftRight<1>(whole);
  const auto power = [&](decltype(whole) e) HWY_ATTR {
    return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(e, hn::Set(di32, 127))));
  };
  return hn::Mul(hn::Mul(x, power(half)), power(hn::Sub(whole, half)));
#endif
}

struct ExpTerms {
  Vector exp;    // e^x: 0 below -87.3 (no subnormals), infinity above 88.7
  Vector minus;  // e^x - 1
  Vector rest;   // e^x - 1 - x, without the cancellation near 0
};

// All three from one polynomial. x is finite.
HWY_INLINE ExpTerms ExpAll(Vector x) {
  const Floats d;
  const Vector one = hn::Set(d, 1.0f);
  const Vector bounded = hn::Min(hn::Max(x, hn::Set(d, -87.33f)), hn::Set(d, 89.0f));
  const Vector n = hn::Round(hn::Mul(bounded, hn::Set(d, 1.44269504f)));
  // ln 2 in two parts, the first with few bits so that n times it is exact.
  Vector f = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), bounded);
  f = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), f);
  Vector p = hn::MulAdd(f, hn::Set(d, 1.0f / 5040), hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, f, hn::Set(d, 0.5f));
  const Vector quadratic = hn::Mul(hn::Mul(f, f), p);  // e^f - 1 - f
  const Vector change = hn::Add(f, quadratic);         // e^f - 1
  const Vector power = ScaleByPower(one, n);
  // At n = 128 the power is infinite while e^f is below 1: scale the product.
  const Vector exp = ScaleByPower(hn::Add(one, change), n);
  const Vector minus = hn::MulAdd(power, change, hn::Sub(power, one));
  const auto near = hn::Eq(n, hn::Zero(d));
  ExpTerms terms;
  terms.exp = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.33f)), exp);
  terms.minus = hn::IfThenElse(near, change, minus);
  terms.rest = hn::IfThenElse(near, quadratic, hn::Sub(minus, x));
  return terms;
}

// Natural log of a positive normal number; -infinity at 0. From m = 2^-e x in [sqrt(1/2), sqrt(2))
// and ln m = 2 artanh s, s = (m - 1) / (m + 1).
HWY_INLINE Vector Log(Vector x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di32;
  const Vector one = hn::Set(d, 1.0f);
  const auto bits = hn::BitCast(di32, x);
  // Subtracting sqrt(1/2)'s bits makes the exponent field carry where m would reach sqrt(2).
  const auto shifted = hn::Sub(bits, hn::Set(di32, 0x3f3504f3));
  const auto e = hn::ShiftRight<23>(shifted);
  const Vector m = hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(e)));
  const Vector exponent = hn::ConvertTo(d, e);
  const Vector f = hn::Sub(m, one);
  const Vector s = hn::Div(f, hn::Add(m, one));
  const Vector z = hn::Mul(s, s);
  Vector p = hn::MulAdd(z, hn::Set(d, 2.0f / 9), hn::Set(d, 2.0f / 7));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f / 5));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f / 3));
  // 2 s = f - s f, so that the rounding of s enters in second order.
  const Vector half_square = hn::Mul(hn::Set(d, 0.5f), hn::Mul(f, f));
  const Vector tail = hn::Mul(s, hn::MulAdd(z, p, half_square));
  const Vector low = hn::MulAdd(exponent, hn::Set(d, -2.12194440e-4f), hn::Sub(tail, half_square));
  const Vector log = hn::MulAdd(exponent, hn::Set(d, 0.693359375f), hn::Add(f, low));
  return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Set(d, -std::numeric_limits<float>::infinity()),
                        log);
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_ELEMENTARY_INL_H_
