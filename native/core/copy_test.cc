#include "core/copy.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"

using namespace varlen;

namespace {

constexpr DType kAll[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF64,
                          DType::kI32, DType::kI64, DType::kU8};

Tensor Make(DType dtype, const std::vector<int64_t>& shape) {
  Tensor tensor;
  tensor.dtype = dtype;
  for (const int64_t size : shape) tensor.shape[size_t(tensor.rank++)] = size;
  tensor.SetContiguousStrides();
  tensor.storage = StorageRef(Storage::New(tensor.size() * SizeOf(dtype)));
  return tensor;
}

// Element `i` of a contiguous tensor, as far as a double holds it.
double Get(const Tensor& t, int64_t i) {
  double value = 0;
  const Status status = DispatchDType<float, half, bfloat16, double, int32_t, int64_t, uint8_t>(
      t.dtype, "dtype", [&]<class T>() {
        if constexpr (std::is_same_v<T, half> || std::is_same_v<T, bfloat16>) {
          value = static_cast<float>(t.data<T>()[i]);
        } else {
          value = static_cast<double>(t.data<T>()[i]);
        }
        return Status{};
      });
  REQUIRE(status.ok());
  return value;
}

void Set(const Tensor& t, int64_t i, double value) {
  const Status status = DispatchDType<float, half, bfloat16, double, int32_t, int64_t, uint8_t>(
      t.dtype, "dtype", [&]<class T>() {
        if constexpr (std::is_same_v<T, half> || std::is_same_v<T, bfloat16>) {
          t.data<T>()[i] = T(static_cast<float>(value));
        } else {
          t.data<T>()[i] = static_cast<T>(value);
        }
        return Status{};
      });
  REQUIRE(status.ok());
}

template <class To, class From>
To One(DType from, DType to, From value) {
  const Tensor src = Make(from, {}), dst = Make(to, {});
  std::memcpy(src.storage->data(), &value, sizeof(value));
  REQUIRE(Run(Copy{src, dst}).ok());
  To result;
  std::memcpy(&result, dst.storage->data(), sizeof(result));
  return result;
}

}  // namespace

TEST_CASE("small whole numbers survive a copy between any two dtypes, at any rank") {
  const std::vector<int64_t> shapes[] = {{},
                                         {7},
                                         {0},
                                         {2, 3},
                                         {3, 0, 2},
                                         {2, 1, 3},
                                         {2, 2, 2, 2},
                                         {1, 2, 1, 3, 2},
                                         {2, 1, 2, 1, 2, 2}};
  for (const DType from : kAll) {
    for (const DType to : kAll) {
      for (const std::vector<int64_t>& shape : shapes) {
        CAPTURE(NameOf(from));
        CAPTURE(NameOf(to));
        const Tensor src = Make(from, shape), dst = Make(to, shape);
        for (int64_t i = 0; i < src.size(); ++i) Set(src, i, double(i % 100));
        REQUIRE(Run(Copy{src, dst}).ok());
        for (int64_t i = 0; i < dst.size(); ++i) REQUIRE(Get(dst, i) == double(i % 100));
      }
    }
  }
}

TEST_CASE("a copy follows any strides and offset; each element lands in row-major order") {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const DType from = kAll[random() % 7], to = round % 2 == 0 ? from : kAll[random() % 7];
    const Tensor whole = Make(from, {3000});
    for (int64_t i = 0; i < 3000; ++i) Set(whole, i, double(i % 128));
    Tensor view = whole;
    view.rank = 1 + int(random() % 6);
    view.offset = int64_t(random() % 50);
    int64_t room = 2900;
    for (int d = 0; d < view.rank; ++d) {
      view.shape[size_t(d)] = 1 + int64_t(random() % 3);
      view.strides[size_t(d)] = int64_t(random() % uint64_t(room / 6 / 3));
      room -= (view.shape[size_t(d)] - 1) * view.strides[size_t(d)];
    }
    Tensor dst = view;
    dst.offset = 0;
    dst.dtype = to;
    dst.SetContiguousStrides();
    dst.storage = StorageRef(Storage::New(dst.size() * SizeOf(to)));
    REQUIRE(Run(Copy{view, dst}).ok());
    for (int64_t i = 0; i < dst.size(); ++i) {
      int64_t rest = i, offset = view.offset;
      for (int d = view.rank - 1; d >= 0; --d) {
        offset += rest % view.shape[size_t(d)] * view.strides[size_t(d)];
        rest /= view.shape[size_t(d)];
      }
      REQUIRE(Get(dst, i) == double(offset % 128));
    }
  }
}

TEST_CASE("pieces of a large copy meet without a gap, for contiguous, row and strided sources") {
  for (const int64_t columns : {int64_t{1}, int64_t{7}, int64_t{300}}) {
    for (const int64_t stride : {1, 2}) {
      const int64_t rows = 200000 / columns;
      const Tensor whole = Make(DType::kI32, {rows, (columns + 3) * stride});
      for (int64_t i = 0; i < whole.size(); ++i) whole.data<int32_t>()[i] = int32_t(i);
      Tensor view = whole;
      view.shape[1] = columns;
      view.strides[1] = stride;
      const Tensor dst = Make(DType::kI32, {rows, columns});
      const Tensor wide = Make(DType::kF64, {rows, columns});
      REQUIRE(Run(Copy{view, dst}).ok());
      REQUIRE(Run(Copy{view, wide}).ok());
      int64_t wrong = 0;
      for (int64_t i = 0; i < dst.size(); ++i) {
        const int64_t expected = i / columns * whole.strides[0] + i % columns * stride;
        wrong += dst.data<int32_t>()[i] != expected || wide.data<double>()[i] != double(expected);
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("CopyOut moves the bits, NaNs included, for every dtype") {
  for (const DType dtype : kAll) {
    const Tensor t = Make(dtype, {257});
    const auto bytes = size_t(257 * SizeOf(dtype));
    for (size_t i = 0; i < bytes; ++i) t.storage->data()[i] = std::byte(i * 37 + 255);
    std::vector<std::byte> out(bytes);
    REQUIRE(CopyOut(t, out.data()).ok());
    CHECK(std::memcmp(out.data(), t.storage->data(), bytes) == 0);
  }
}

TEST_CASE("doubles and large integers round to the 16-bit types once, not twice") {
  // Just above the middle of two neighbours; through float32 they would look like the tie.
  CHECK(One<uint16_t>(DType::kF64, DType::kBF16, 1.00390625 + 0x1p-40) == 0x3f81);
  CHECK(One<uint16_t>(DType::kF64, DType::kBF16, -(1.00390625 + 0x1p-40)) == 0xbf81);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 1.00048828125 + 0x1p-40) == 0x3c01);
  // Just below: the tie would go up to the even neighbour.
  CHECK(One<uint16_t>(DType::kF64, DType::kBF16, 1.01171875 - 0x1p-40) == 0x3f81);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 1.00146484375 - 0x1p-40) == 0x3c01);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 65519.99999999) == 0x7bff);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 65520.0) == 0x7c00);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 0x1p-25) == 0x0000);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, 0x1p-25 + 0x1p-60) == 0x0001);
  CHECK(One<uint16_t>(DType::kF64, DType::kF16, -1e-300) == 0x8000);
  CHECK(One<uint16_t>(DType::kF64, DType::kBF16, 1e300) == 0x7f80);
  CHECK((One<uint16_t>(DType::kF64, DType::kBF16, std::nan("")) & 0x7fff) == 0x7fc0);

  const int32_t above = (1 << 30) + (1 << 22) + 1;  // the middle of two bfloat16, and one more
  CHECK(One<uint16_t>(DType::kI32, DType::kBF16, above) == 0x4e81);
  CHECK(One<uint16_t>(DType::kI32, DType::kBF16, above - 1) == 0x4e80);
  const int64_t huge = (int64_t{1} << 62) + (int64_t{1} << 54) + 1;
  CHECK(One<uint16_t>(DType::kI64, DType::kBF16, huge) == 0x5e81);
  CHECK(One<uint16_t>(DType::kI64, DType::kBF16, -huge) == 0xde81);
  CHECK(One<uint16_t>(DType::kI64, DType::kBF16, huge - 1) == 0x5e80);
  CHECK(One<uint16_t>(DType::kI64, DType::kBF16, std::numeric_limits<int64_t>::min()) == 0xdf00);
  CHECK(One<float>(DType::kI32, DType::kF32, 16777217) == 16777216.0f);
}

TEST_CASE("a float that no integer holds becomes the nearest bound, and NaN becomes 0") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  CHECK(One<int32_t>(DType::kF64, DType::kI32, 2.9) == 2);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, -2.9) == -2);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, 2147483647.0) == 2147483647);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, 2147483648.0) == 2147483647);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, -2147483648.0) == -2147483648);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, -2147483649.5) == -2147483648);
  CHECK(One<int32_t>(DType::kF32, DType::kI32, 3e9f) == 2147483647);
  CHECK(One<int32_t>(DType::kF64, DType::kI32, std::nan("")) == 0);
  CHECK(One<int64_t>(DType::kF64, DType::kI64, kInfinity) == std::numeric_limits<int64_t>::max());
  CHECK(One<int64_t>(DType::kF64, DType::kI64, -kInfinity) == std::numeric_limits<int64_t>::min());
  CHECK(One<int64_t>(DType::kF32, DType::kI64, -9e18f) == -9000000202358128640);
  CHECK(One<uint8_t>(DType::kF32, DType::kU8, 255.9f) == 255);
  CHECK(One<uint8_t>(DType::kF32, DType::kU8, 256.0f) == 255);
  CHECK(One<uint8_t>(DType::kF32, DType::kU8, -0.5f) == 0);
  CHECK(One<uint8_t>(DType::kF32, DType::kU8, -3.0f) == 0);
  CHECK(One<uint8_t>(DType::kF16, DType::kU8, half(1000.0f)) == 255);
}

TEST_CASE("an integer narrows to its low bits") {
  CHECK(One<int32_t>(DType::kI64, DType::kI32, (int64_t{5} << 32) + 7) == 7);
  CHECK(One<uint8_t>(DType::kI32, DType::kU8, 256 + 9) == 9);
  CHECK(One<uint8_t>(DType::kI32, DType::kU8, -1) == 255);
}

TEST_CASE("Accumulate adds in float32 and rounds to the target's dtype") {
  constexpr DType kFloatTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (const DType from : kFloatTypes) {
    for (const DType to : kFloatTypes) {
      const Tensor src = Make(from, {5, 3}), dst = Make(to, {5, 3});
      for (int64_t i = 0; i < 15; ++i) {
        Set(src, i, double(i) / 4);
        Set(dst, i, double(i));
      }
      REQUIRE(Run(Accumulate{src, dst}).ok());
      for (int64_t i = 0; i < 15; ++i) REQUIRE(Get(dst, i) == double(i) * 1.25);
    }
  }
  const Tensor src = Make(DType::kF32, {1}), dst = Make(DType::kBF16, {1});
  Set(src, 0, 0x1p-9);
  Set(dst, 0, 1);
  REQUIRE(Run(Accumulate{src, dst}).ok());
  CHECK(Get(dst, 0) == 1);  // too small for bfloat16 to notice
}

TEST_CASE("results do not depend on the number of threads") {
  const int before = NumThreads();
  const Tensor src = Make(DType::kF64, {700, 333});
  for (int64_t i = 0; i < src.size(); ++i) src.data<double>()[i] = std::sin(double(i)) * 1e3;
  std::vector<uint16_t> first;
  for (const int threads : {1, 2, 7, 16}) {
    SetNumThreads(threads);
    const Tensor dst = Make(DType::kBF16, {700, 333});
    REQUIRE(Run(Copy{src, dst}).ok());
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(dst.storage->data());
    if (first.empty()) first.assign(bits, bits + dst.size());
    CHECK(std::equal(first.begin(), first.end(), bits));
  }
  SetNumThreads(before);
}

TEST_CASE("a dtype without a kernel is a status that names it") {
  const Status status = DispatchDType<float>(DType::kI64, "q", []<class T>() { return Status{}; });
  CHECK(status.code == Code::kUnsupported);
  CHECK(status.argument == "q");
  CHECK(status.message.find("int64") != std::string::npos);
  CHECK(DispatchInt<64, 128>(128, "headDim", []<int kValue>() {
          return Status{kValue == 128 ? Code::kOk : Code::kRange, "", "", {}};
        }).ok());
  CHECK(DispatchInt<64, 128>(65, "headDim", []<int>() { return Status{}; }).code ==
        Code::kUnsupported);
}
