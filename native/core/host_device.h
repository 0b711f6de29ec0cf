#pragma once

// Before a function that host code and CUDA kernels share; nothing without nvcc.
#if defined(__CUDACC__)
#define VARLEN_HOST_DEVICE __host__ __device__
#else
#define VARLEN_HOST_DEVICE
#endif
