#pragma once

#include <cmath>

#include "core/cuda/kernel.h"
#include "core/device-pieces.h"
#include "core/device-reduce.h"

// The norm and the scaling on a GPU: every piece's squares in float64 by a fixed tree, the pieces
// in an order that depends on their number alone, then the scaling. Every pointer is device memory.
namespace varlen::grad_clip {

inline constexpr int kClipThreads = 256;
inline constexpr int kClipWarps = kClipThreads / simt::kWarpSize;

struct DeviceSquares {
  static constexpr int kThreads = kClipThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 2 * kClipWarps * sizeof(double);

  struct Params {
    DevicePieces pieces;
    float* const* gradients;  // [pieces.num_tensors]
    double* squares;          // [pieces.count]
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    int turn = 0;  // pieces take turns with the memory of the sums: one barrier each is enough
    for (int64_t id = simt::BlockIndex(); id < p.pieces.count; id += simt::GridSize()) {
      const DevicePiece piece = p.pieces.At(id);
      const float* values = simt::Load(p.gradients + piece.tensor);
      double sum = 0;
      for (int64_t i = piece.begin + simt::ThreadIndex(); i < piece.end; i += kThreads) {
        const double value = simt::Load(values + i);
        sum += value * value;
      }
      sum = FoldLanes(Fold::kSum, sum);
      double* sums = partial + turn * kClipWarps;
      turn = 1 - turn;
      if (simt::LaneIndex() == 0) simt::Store(sums + simt::WarpIndex(), sum);
      simt::SyncThreads();
      if (simt::ThreadIndex() == 0) {
        simt::Store(p.squares + id, FoldFew<kClipWarps>(Fold::kSum, sums));
      }
    }
  }
};

struct DeviceNorm {
  static constexpr int kThreads = kClipThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = kClipWarps * sizeof(double);

  struct Params {
    const double* squares;  // [count]
    int64_t count;
    double max_norm;
    float* norm;    // [1]
    float* factor;  // [1], of the gradients: 1 where they stay
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    double sum = 0;
    for (int64_t i = simt::ThreadIndex(); i < p.count; i += kThreads) {
      sum += simt::Load(p.squares + i);
    }
    sum = FoldLanes(Fold::kSum, sum);
    if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), sum);
    simt::SyncThreads();
    if (simt::ThreadIndex() != 0) return;
    const double norm = std::sqrt(FoldFew<kClipWarps>(Fold::kSum, partial));
    const double factor = p.max_norm / (norm + 1e-6);
    const bool finite = norm - norm == 0;
    simt::Store(p.norm, static_cast<float>(norm));
    simt::Store(p.factor, finite && factor < 1 ? static_cast<float>(factor) : 1.0f);
  }
};

struct DeviceClip {
  static constexpr int kThreads = kClipThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DevicePieces pieces;
    float* const* gradients;
    const float* factor;  // of DeviceNorm
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const float factor = simt::Load(p.factor);
    if (factor == 1) return;
    for (int64_t id = simt::BlockIndex(); id < p.pieces.count; id += simt::GridSize()) {
      const DevicePiece piece = p.pieces.At(id);
      float* values = simt::Load(p.gradients + piece.tensor);
      for (int64_t i = piece.begin + simt::ThreadIndex(); i < piece.end; i += kThreads) {
        simt::Store(values + i, simt::Load(values + i) * factor);
      }
    }
  }
};

using Kernels = cuda::KernelList<DeviceSquares, DeviceNorm, DeviceClip>;

}  // namespace varlen::grad_clip
