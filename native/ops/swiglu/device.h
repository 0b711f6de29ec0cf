#pragma once

#include "core/cuda/kernel.h"
#include "core/elementwise-device.h"

// The gated unit on a GPU; every pointer is device memory.
namespace varlen::swiglu {

// 1 / (1 + e^-x): e^-x overflows to infinity, whose inverse is the right 0.
SIMT_FN float Sigmoid(float x) { return 1.0f / (1.0f + simt::Exp2(x * -1.4426950408889634f)); }

template <class T>
struct Gate {
  struct Params {
    const T *gate, *up;
    T* out;
    int64_t size;
    bool vector_access;  // all begin at multiples of 16 bytes
  };

  static SIMT_FN void Do(const Params& p, int64_t first, int count) {
    float gate[internal::kChunk], up[internal::kChunk];
    internal::LoadChunk(p.gate, first, count, p.vector_access, gate);
    internal::LoadChunk(p.up, first, count, p.vector_access, up);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) up[i] *= gate[i] * Sigmoid(gate[i]);
    internal::StoreChunk(up, p.out, first, count, p.vector_access);
  }
};

template <class T>
struct GateGradients {
  struct Params {
    const T *d_out, *gate, *up;
    T *d_gate, *d_up;
    int64_t size;
    bool vector_access;
  };

  static SIMT_FN void Do(const Params& p, int64_t first, int count) {
    float dy[internal::kChunk], gate[internal::kChunk], up[internal::kChunk];
    internal::LoadChunk(p.d_out, first, count, p.vector_access, dy);
    internal::LoadChunk(p.gate, first, count, p.vector_access, gate);
    internal::LoadChunk(p.up, first, count, p.vector_access, up);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) {
      const float s = Sigmoid(gate[i]), g = gate[i];
      gate[i] = dy[i] * up[i] * (s * (1 + g * (1 - s)));
      up[i] = dy[i] * (g * s);
    }
    internal::StoreChunk(gate, p.d_gate, first, count, p.vector_access);
    internal::StoreChunk(up, p.d_up, first, count, p.vector_access);
  }
};

template <class T>
using DeviceGate = DeviceElementwise<Gate<T>>;
template <class T>
using DeviceGateGradients = DeviceElementwise<GateGradients<T>>;

using Kernels = cuda::FloatKernels<DeviceGate, DeviceGateGradients>;

}  // namespace varlen::swiglu
