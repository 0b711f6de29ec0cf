#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/simt/simt.h"

#define VARLEN_RULE_SCALAR SIMT_FN
#include "core/loss/rules-inl.h"

// The arithmetic of rules-inl.h for one GPU thread.
namespace varlen::loss {

struct ScalarExp {
  float exp;    // e^x: 0 below -87.3, infinity above 88.7
  float minus;  // e^x - 1
  float rest;   // e^x - 1 - x, without the cancellation near 0
};

struct ScalarMath {
  using V = float;
  using Mask = bool;
  static SIMT_FN V Set(float value) { return value; }
  // Of a NaN and a number the second, as the vectors of x86 have it.
  static SIMT_FN V Min(V a, V b) { return a < b ? a : b; }
  static SIMT_FN V Max(V a, V b) { return a > b ? a : b; }
  static SIMT_FN V Abs(V a) { return a < 0 ? 0 - a : a; }
  static SIMT_FN V Select(Mask mask, V yes, V no) { return mask ? yes : no; }
  static SIMT_FN Mask And(Mask a, Mask b) { return a && b; }
  static SIMT_FN Mask AndNot(Mask refused, Mask a) { return !refused && a; }
  static SIMT_FN Mask Lt(V a, V b) { return a < b; }
  static SIMT_FN Mask Le(V a, V b) { return a <= b; }
  static SIMT_FN V Log(V x) { return std::log(x); }
  static SIMT_FN V Exp(V x) { return ExpAll(x).exp; }

  // The polynomial of core/elementary-inl.h. x is finite.
  static SIMT_FN ScalarExp ExpAll(V x) {
    const float bounded = Min(Max(x, -87.33f), 89.0f);
    const float n = std::rint(bounded * 1.44269504f);
    // ln 2 in two parts, the first with few bits so that n times it is exact.
    const float f = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = f * (1.0f / 5040) + 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    const float quadratic = f * f * p;  // e^f - 1 - f
    const float change = f + quadratic;
    const int whole = static_cast<int>(n), half = whole >> 1;
    const float power = Power(half), other = Power(whole - half);
    ScalarExp terms;
    terms.exp = x < -87.33f ? 0.0f : (1 + change) * power * other;
    if (n == 0) {
      terms.minus = change;
      terms.rest = quadratic;
    } else {
      terms.minus = power * other * change + (power * other - 1);
      terms.rest = terms.minus - x;
    }
    return terms;
  }

 private:
  static SIMT_FN float Power(int n) {
    return simt::BitsToFloat(static_cast<uint32_t>(n + 127) << 23);
  }
};

}  // namespace varlen::loss
