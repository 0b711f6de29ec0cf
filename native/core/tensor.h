#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/dtype.h"
#include "core/storage.h"

namespace varlen {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

inline constexpr int kMaxRank = 6;

// A strided view of a storage. Shape and strides are in elements, outermost dimension first.
struct Tensor {
  StorageRef storage;
  int64_t offset = 0;  // elements from the storage's start
  DType dtype = DType::kF32;
  Device device;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};

  // A contiguous tensor with memory of its own, uninitialised. For native tests and references;
  // the addon allocates from the stream's cache instead.
  static Tensor Empty(DType dtype, std::initializer_list<int64_t> shape);

  explicit operator bool() const { return static_cast<bool>(storage); }

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  bool contiguous() const {
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
  void SetContiguousStrides() {
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= shape[i];
    }
  }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(storage->data()) + offset;
  }
  // The first element, whatever its type; null for an absent tensor.
  void* address() const { return storage ? storage->data() + offset * SizeOf(dtype) : nullptr; }
};

// A small int32 or float array that came with the call and was copied, or a tensor that is read
// when the op runs. Absent when it is neither.
template <class T>
struct HostOrTensor {
  std::shared_ptr<const std::vector<T>> host;
  Tensor tensor;  // [size], contiguous

  explicit operator bool() const { return host != nullptr || static_cast<bool>(tensor); }
  bool on_host() const { return host != nullptr; }
  int64_t size() const {
    return host != nullptr ? static_cast<int64_t>(host->size()) : tensor.size();
  }
  // Valid at once when on_host(); otherwise only inside the running op.
  const T* data() const { return host != nullptr ? host->data() : tensor.data<T>(); }
};

}  // namespace varlen
