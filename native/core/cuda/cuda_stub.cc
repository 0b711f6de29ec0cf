#include "core/cuda/api.h"
#include "core/cuda/ipc.h"

// Compiled instead of runtime.cc when CUDA is off. CMake says why.
namespace varlen {

CudaRuntime LinkedCudaRuntime() {
  CudaRuntime runtime;
  runtime.not_built = VARLEN_NO_CUDA_REASON;
  return runtime;
}

CudaIpc LinkedCudaIpc() { return {}; }

}  // namespace varlen
