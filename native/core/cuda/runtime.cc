#include <cuda_runtime_api.h>

#include "core/cuda/probe.h"

namespace varlen {
namespace {

static_assert(cudaErrorNoDevice == 100 && cudaErrorNoKernelImageForDevice == 209 &&
                  cudaErrorUnsupportedPtxVersion == 222,
              "probe.cc spells these values out");

int RuntimeVersion(int* version) { return cudaRuntimeGetVersion(version); }
int DriverVersion(int* version) { return cudaDriverGetVersion(version); }

int DeviceCount(int* count) {
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error != cudaSuccess) {
    *count = 0;
    (void)cudaGetLastError();  // the failure is answered; do not leave it for the next call
  }
  return error;
}

int Device(CudaDevice* device, int index) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return error;
  device->name = properties.name;
  device->compute_major = properties.major;
  device->compute_minor = properties.minor;
  device->multiprocessors = properties.multiProcessorCount;
  device->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return cudaSuccess;
}

const char* ErrorName(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

}  // namespace

CudaRuntime LinkedCudaRuntime() {
  CudaRuntime runtime;
  runtime.runtime_version = RuntimeVersion;
  runtime.driver_version = DriverVersion;
  runtime.device_count = DeviceCount;
  runtime.device = Device;
  runtime.error_name = ErrorName;
  return runtime;
}

}  // namespace varlen
