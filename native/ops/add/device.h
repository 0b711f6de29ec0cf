#pragma once

#include "core/cuda/kernel.h"
#include "core/elementwise-device.h"

// The sum on a GPU; every pointer is device memory.
namespace varlen::add {

template <class T>
struct Sum {
  struct Params {
    const T *a, *b;
    T* out;
    int64_t size;
    bool vector_access;  // all three begin at multiples of 16 bytes
  };

  static SIMT_FN void Do(const Params& p, int64_t first, int count) {
    float a[internal::kChunk], b[internal::kChunk];
    internal::LoadChunk(p.a, first, count, p.vector_access, a);
    internal::LoadChunk(p.b, first, count, p.vector_access, b);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) a[i] += b[i];
    internal::StoreChunk(a, p.out, first, count, p.vector_access);
  }
};

template <class T>
using DeviceSum = DeviceElementwise<Sum<T>>;

using Kernels = cuda::FloatKernels<DeviceSum>;

}  // namespace varlen::add
