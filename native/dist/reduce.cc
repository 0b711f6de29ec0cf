#include "dist/reduce.h"

#include <cmath>
#include <type_traits>

namespace varlen::dist {
namespace {

// The sum of 2^20 ranks' int64 does not fit in 64 bits.
__extension__ using Int128 = __int128;

// Integers wrap as their type does; signed overflow would be undefined.
template <class T>
T Add(T a, T b) {
  if constexpr (std::is_same_v<T, int32_t>) {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  } else {
    return static_cast<T>(a + b);
  }
}

// NaN wins over every number, and -0 is less than 0, as in Math.min and Math.max.
template <bool kMin, class T>
T Pick(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a)) return a;
    if (std::isnan(b)) return b;
    if (a == b) return std::signbit(a) == kMin ? a : b;
  }
  return (a < b) == kMin ? a : b;
}

template <class T, T (*kOp)(T, T)>
void Reduce(void* out, const void* a, const void* b, size_t count) {
  T* to = static_cast<T*>(out);
  const T* x = static_cast<const T*>(a);
  const T* y = static_cast<const T*>(b);
  for (size_t i = 0; i < count; ++i) to[i] = kOp(x[i], y[i]);
}

template <class T, class Wide>
void Widen(const void* from, void* to, size_t count) {
  const T* source = static_cast<const T*>(from);
  Wide* target = static_cast<Wide*>(to);
  for (size_t i = 0; i < count; ++i) target[i] = static_cast<Wide>(source[i]);
}

template <class T, class Wide>
void Divide(const void* from, void* to, size_t count, int size) {
  const Wide* source = static_cast<const Wide*>(from);
  T* target = static_cast<T*>(to);
  for (size_t i = 0; i < count; ++i) {
    target[i] = static_cast<T>(source[i] / static_cast<Wide>(size));
  }
}

template <class T, class Wide>
Plan PlanFor(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum:
      return {Reduce<T, Add<T>>, sizeof(T), nullptr, nullptr};
    case Reduction::kAvg:
      if constexpr (std::is_floating_point_v<T>) {
        return {Reduce<T, Add<T>>, sizeof(T), nullptr, Divide<T, T>};
      } else {
        return {Reduce<Wide, Add<Wide>>, sizeof(Wide), Widen<T, Wide>, Divide<T, Wide>};
      }
    case Reduction::kMin:
      return {Reduce<T, Pick<true, T>>, sizeof(T), nullptr, nullptr};
    case Reduction::kMax:
      return {Reduce<T, Pick<false, T>>, sizeof(T), nullptr, nullptr};
  }
  return {};
}

}  // namespace

size_t SizeOf(Element element) {
  switch (element) {
    case Element::kU8:
      return 1;
    case Element::kI32:
    case Element::kF32:
      return 4;
    case Element::kF64:
    case Element::kI64:
      return 8;
  }
  return 0;
}

Plan PlanOf(Element element, Reduction reduction) {
  switch (element) {
    case Element::kU8:
      return PlanFor<uint8_t, int64_t>(reduction);
    case Element::kI32:
      return PlanFor<int32_t, int64_t>(reduction);
    case Element::kF32:
      return PlanFor<float, float>(reduction);
    case Element::kF64:
      return PlanFor<double, double>(reduction);
    case Element::kI64:
      return PlanFor<int64_t, Int128>(reduction);
  }
  return {};
}

}  // namespace varlen::dist
