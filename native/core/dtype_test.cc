#include "core/dtype.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

using namespace varlen;

namespace {

uint32_t BitsOf(float value) { return std::bit_cast<uint32_t>(value); }

// Nearest value of a 16-bit format, ties to even, found by walking the format's own values.
template <class T>
uint16_t NearestBySearch(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::abs(value);
  constexpr uint16_t kInfinity = std::is_same_v<T, half> ? 0x7c00 : 0x7f80;
  const auto at = [](uint16_t bits) {
    T element;
    element.bits = bits;
    return static_cast<double>(static_cast<float>(element));
  };
  // What lies beyond the last finite value counts as one more step.
  const auto value_at = [&](uint16_t bits) {
    return bits < kInfinity ? at(bits) : 2 * at(kInfinity - 1) - at(kInfinity - 2);
  };
  uint16_t low = 0, high = kInfinity;  // value_at(low) <= magnitude
  if (magnitude >= value_at(kInfinity)) return sign | kInfinity;
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (value_at(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - value_at(low), above = value_at(high) - magnitude;
  const bool up = above < below || (above == below && (low & 1) != 0);
  return sign | (up ? high : low);
}

// Bit patterns around every rounding boundary, and a stride through all of them.
template <class Fn>
void ForManyFloats(const Fn& fn) {
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x2fffu, 0x3000u,
                                 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      fn(std::bit_cast<float>(upper << 16 | lower));
    }
  }
}

template <class T>
void CheckRoundTrip() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    T element;
    element.bits = static_cast<uint16_t>(bits);
    const float value = static_cast<float>(element);
    const uint16_t back = T(value).bits;
    if (std::isnan(value)) {
      constexpr uint16_t kQuiet = std::is_same_v<T, half> ? 0x0200 : 0x0040;
      if (back != (bits | kQuiet)) FAIL("NaN ", bits, " became ", back);
    } else if (back != bits) {
      FAIL(bits, " became ", back);
    }
  }
}

}  // namespace

TEST_CASE("the conversion table of the dtypes holds") {
  struct Row {
    float value;
    uint16_t bf16;
    float bf16_value;
    uint16_t f16;
  };
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Row rows[] = {
      {1, 0x3f80, 1, 0x3c00},
      {-2.5f, 0xc020, -2.5f, 0xc100},
      {3.14159274f, 0x4049, 3.140625f, 0x4248},
      {1.0f / 3, 0x3eab, 0.333984375f, 0x3555},
      {65504, 0x4780, 65536, 0x7bff},
      {65520, 0x4780, 65536, 0x7c00},
      {1e-8f, 0x322c, 1.0011717677e-8f, 0x0000},
      {5.9604645e-8f, 0x3380, 5.9604644775e-8f, 0x0001},
      {kNaN, 0x7fc0, kNaN, 0x7e00},
      {kInfinity, 0x7f80, kInfinity, 0x7c00},
      {1.00390625f, 0x3f80, 1, 0x3c04},
      {1.01171875f, 0x3f82, 1.015625f, 0x3c0c},
  };
  for (const Row& row : rows) {
    CAPTURE(row.value);
    CHECK(bfloat16(row.value).bits == row.bf16);
    CHECK(BitsOf(static_cast<float>(bfloat16(row.value))) == BitsOf(row.bf16_value));
    CHECK(half(row.value).bits == row.f16);
  }
}

TEST_CASE("every bfloat16 and every half survives a trip through float32; a NaN becomes quiet") {
  CheckRoundTrip<bfloat16>();
  CheckRoundTrip<half>();
}

TEST_CASE("float32 rounds to the nearest half and bfloat16, ties to even") {
  int64_t wrong = 0;
  ForManyFloats([&](float value) {
    if (std::isnan(value)) {
      wrong += !std::isnan(static_cast<float>(half(value)));
      wrong += !std::isnan(static_cast<float>(bfloat16(value)));
      return;
    }
    wrong += half(value).bits != NearestBySearch<half>(value);
    wrong += bfloat16(value).bits != NearestBySearch<bfloat16>(value);
  });
  CHECK(wrong == 0);
}

TEST_CASE("a NaN keeps its sign, and never becomes an infinity") {
  for (const uint32_t payload : {0x7f800001u, 0x7f802000u, 0x7fbfffffu, 0x7fffffffu}) {
    const float positive = std::bit_cast<float>(payload);
    const float negative = std::bit_cast<float>(payload | 0x80000000u);
    CAPTURE(payload);
    CHECK((half(positive).bits & 0x7c00) == 0x7c00);
    CHECK((half(positive).bits & 0x3ff) != 0);
    CHECK((half(negative).bits & 0x8000) != 0);
    CHECK((bfloat16(positive).bits & 0x7f) != 0);
    CHECK((bfloat16(negative).bits & 0x8000) != 0);
  }
}

TEST_CASE("every dtype has its size and its name") {
  const std::pair<DType, int64_t> sizes[] = {{DType::kF32, 4}, {DType::kF16, 2}, {DType::kBF16, 2},
                                             {DType::kF64, 8}, {DType::kI32, 4}, {DType::kI64, 8},
                                             {DType::kU8, 1}};
  for (const auto& [dtype, size] : sizes) {
    CAPTURE(NameOf(dtype));
    CHECK(SizeOf(dtype) == size);
    CHECK(NameOf(dtype) != std::string("?"));
  }
}
