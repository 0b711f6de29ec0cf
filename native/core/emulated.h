#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

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

inline bool SameBits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto bytes = static_cast<size_t>(a[i].size() * SizeOf(a[i].dtype));
    if (a[i].size() != b[i].size()) return false;
    if (bytes > 0 && std::memcmp(a[i].address(), b[i].address(), bytes) != 0) return false;
  }
  return a.size() == b.size();
}

}  // namespace varlen::testing
