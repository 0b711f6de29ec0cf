#pragma once

// The instructions a kernel is written in. Under nvcc each function is one inline PTX statement;
// under a host compiler the same function is emulated, thread by thread, so that a kernel runs and
// is tested where there is no GPU (docs/guide/simt-emulator.md). A kernel is a struct:
//
//   struct Scale {
//     static constexpr int kThreads = 128;
//     struct Params { const float* in; float* out; int n; float factor; };
//     static SIMT_FN void Run(const Params& p, unsigned char* shared) {
//       const int i = simt::BlockIndex() * kThreads + simt::ThreadIndex();
//       if (i < p.n) simt::Store(p.out + i, p.factor * simt::Load(p.in + i));
//     }
//   };
//
// Grids and blocks are one-dimensional; collectives name the whole warp or warpgroup.
#if defined(__CUDACC__)
#include "core/simt/device.h"
#include "core/simt/device_sm90a.h"
#else
#include "core/simt/host.h"
#include "core/simt/host/launch.h"
#include "core/simt/host_sm90a.h"
#endif
