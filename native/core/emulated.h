#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/op_test.h"
#include "core/simt/simt.h"
#include "core/tensor.h"
#include "doctest/doctest.h"

// For tests: tensors to emulated device memory and back, and launches that must not fail.
namespace varlen::testing {

template <class T>
simt::GlobalArray<T> Upload(const Tensor& tensor) {
  return {tensor ? tensor.data<T>() : nullptr, tensor ? tensor.size() : 0};
}
template <class T>
simt::GlobalArray<T> Upload(const HostOrTensor<T>& array) {
  return {array ? array.data() : nullptr, array ? array.size() : 0};
}
// Null for an array that is absent.
template <class T>
T* Given(const simt::GlobalArray<T>& array) {
  return array.size() > 0 ? array.data() : nullptr;
}

// As a tensor of one dimension.
template <class T>
Tensor Download(const simt::GlobalArray<T>& array) {
  Tensor tensor = Tensor::Empty(DTypeOf<T>::value, {array.size()});
  std::copy(array.begin(), array.end(), tensor.data<T>());
  return tensor;
}

template <class Kernel>
void Emulate(int64_t blocks, const typename Kernel::Params& params, uint64_t seed = 0) {
  const auto result = simt::Launch<Kernel>(blocks, Kernel::kSharedBytes, params, {.seed = seed});
  CHECK(std::string(result.message()) == "");
}

using Doubles = std::vector<double>;

// Elements of any float type as doubles.
template <class Values>
Doubles Widen(const Values& values) {
  Doubles wide;
  for (const auto& value : values) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
      wide.push_back(value);
    } else {
      wide.push_back(static_cast<float>(value));
    }
  }
  return wide;
}
inline Doubles Widen(const Tensor& tensor) {
  Doubles wide;
  for (int64_t i = 0; i < tensor.size(); ++i) wide.push_back(Get(tensor, i));
  return wide;
}

// The largest distance, relative to the largest value but at least to `floor`; infinite where one
// is no number.
inline double ErrorOf(const Doubles& got, const Doubles& want, double floor = 0) {
  if (got.size() != want.size()) return INFINITY;
  double error = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double distance = std::abs(got[i] - want[i]);
    error = std::isnan(distance) ? INFINITY : std::max(error, distance);
    largest = std::max(largest, std::abs(want[i]));
  }
  return largest == 0 ? error : error / std::max(largest, floor);
}
inline double ErrorOf(const Doubles& got, const Tensor& want, double floor = 0) {
  return ErrorOf(got, Widen(want), floor);
}

inline bool SameBits(const Doubles& a, const Doubles& b) {
  if (a.size() != b.size() || a.empty()) return a.size() == b.size();
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}
inline bool SameBits(const std::vector<Doubles>& a, const std::vector<Doubles>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Doubles& x, const Doubles& y) { return SameBits(x, y); });
}

inline bool SameBits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto bytes = static_cast<size_t>(a[i].size() * SizeOf(a[i].dtype));
    if (a[i].size() != b[i].size()) return false;
    if (bytes > 0 && std::memcmp(a[i].address(), b[i].address(), bytes) != 0) return false;
  }
  return a.size() == b.size();
}

}  // namespace varlen::testing
