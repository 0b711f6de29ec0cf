#include "core/cuda/probe.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace varlen {
namespace {

using namespace cuda::error;

constexpr int kOldestComputeMajor = 8;  // Ampere: cp.async and bf16 mma

int Major(int version) { return version / 1000; }

// Oldest driver of a CUDA major release (NVIDIA's compatibility guide, minor-version table).
std::string OldestDriver(int cuda_major) {
  switch (cuda_major) {
    case 12:
      return "driver 525 or newer";
    case 13:
      return "driver 580 or newer";
    default:
      return "a newer driver";
  }
}

CudaStatus Fail(CudaStatus status, CudaProblem problem, std::string reason) {
  status.problem = problem;
  status.reason = std::move(reason);
  return status;
}

std::string NoDeviceReason() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return "the NVIDIA driver reports no CUDA device";
  return std::string("the NVIDIA driver reports no CUDA device; CUDA_VISIBLE_DEVICES is \"") +
         visible + "\"";
}

CudaStatus InitFailed(CudaStatus status, const CudaRuntime& runtime, const char* what, int error) {
  return Fail(std::move(status), CudaProblem::kInitFailed,
              std::string(what) + " failed: " + runtime.error_name(error));
}

std::string NamesOf(const std::vector<CudaDevice>& devices) {
  std::string names;
  for (const CudaDevice& device : devices) {
    names += (names.empty() ? "" : ", ") + device.name + " (" +
             std::to_string(device.compute_major) + "." + std::to_string(device.compute_minor) +
             ")";
  }
  return names;
}

}  // namespace

const char* CudaProblemName(CudaProblem problem) {
  switch (problem) {
    case CudaProblem::kNone:
      return "";
    case CudaProblem::kNotBuilt:
      return "NOT_BUILT";
    case CudaProblem::kDisabled:
      return "DISABLED";
    case CudaProblem::kNoDriver:
      return "NO_DRIVER";
    case CudaProblem::kDriverTooOld:
      return "DRIVER_TOO_OLD";
    case CudaProblem::kNoDevice:
      return "NO_DEVICE";
    case CudaProblem::kArchUnsupported:
      return "ARCH_UNSUPPORTED";
    case CudaProblem::kInitFailed:
      return "INIT_FAILED";
  }
  return "INIT_FAILED";
}

std::string CudaVersionName(int version) {
  return std::to_string(Major(version)) + "." + std::to_string(version % 1000 / 10);
}

CudaStatus ProbeCuda(const CudaRuntime& runtime) {
  CudaStatus status;
  if (runtime.not_built != nullptr) {
    return Fail(status, CudaProblem::kNotBuilt,
                std::string("this binary was built without CUDA: ") + runtime.not_built);
  }
  const char* disabled = std::getenv("VARLEN_DISABLE_CUDA");
  if (disabled != nullptr && std::strcmp(disabled, "1") == 0) {
    return Fail(status, CudaProblem::kDisabled, "VARLEN_DISABLE_CUDA=1 is set");
  }
  if (const int error = runtime.runtime_version(&status.runtime_version); error != kSuccess) {
    return InitFailed(status, runtime, "cudaRuntimeGetVersion", error);
  }
  // The driver first: without one every other call answers cudaErrorInsufficientDriver, which
  // would read as a driver that is too old.
  if (const int error = runtime.driver_version(&status.driver_version); error != kSuccess) {
    return InitFailed(status, runtime, "cudaDriverGetVersion", error);
  }
  if (status.driver_version == 0) {
    return Fail(status, CudaProblem::kNoDriver,
                "no NVIDIA driver answers (libcuda.so.1); a container needs its runtime's GPU flag "
                "(docker run --gpus all)");
  }
  const int built_for = Major(status.runtime_version);
  if (Major(status.driver_version) < built_for) {
    return Fail(status, CudaProblem::kDriverTooOld,
                "driver supports CUDA " + CudaVersionName(status.driver_version) +
                    ", this build needs " + CudaVersionName(status.runtime_version) + ": " +
                    OldestDriver(built_for) +
                    ", or `VARLEN_CUDA=ON npx varlen build` with a CUDA " +
                    std::to_string(Major(status.driver_version)) + " toolkit");
  }

  int count = 0;
  if (const int error = runtime.device_count(&count); error != kSuccess && error != kNoDevice) {
    return InitFailed(status, runtime, "cudaGetDeviceCount", error);
  }
  if (count == 0) return Fail(status, CudaProblem::kNoDevice, NoDeviceReason());
  for (int i = 0; i < count; ++i) {
    CudaDevice device;
    if (const int error = runtime.device(&device, i); error != kSuccess) {
      return InitFailed(status, runtime, "cudaGetDeviceProperties", error);
    }
    status.devices.push_back(std::move(device));
  }
  if (std::all_of(status.devices.begin(), status.devices.end(), [](const CudaDevice& device) {
        return device.compute_major < kOldestComputeMajor;
      })) {
    return Fail(status, CudaProblem::kArchUnsupported,
                "compute capability 8.0 or newer is needed; found " + NamesOf(status.devices));
  }

  if (runtime.kernel == nullptr) {
    return Fail(status, CudaProblem::kNotBuilt, "this build has no CUDA kernels yet");
  }
  int refused = kSuccess;
  for (int i = 0; i < count; ++i) {
    if (status.devices[static_cast<size_t>(i)].compute_major < kOldestComputeMajor) continue;
    const int error = runtime.kernel(i);
    if (error == kSuccess) return status;
    if (error != kNoKernelImageForDevice && error != kUnsupportedPtxVersion) {
      return InitFailed(status, runtime, "cudaFuncGetAttributes", error);
    }
    refused = error;
  }
  return Fail(status, CudaProblem::kArchUnsupported,
              "this build has no kernel for " + NamesOf(status.devices) + ": " +
                  runtime.error_name(refused));
}

const CudaStatus& CudaStatusOfThisProcess() {
  static std::mutex mutex;
  static const CudaStatus* status = nullptr;  // never freed: threads may outlive static objects
  const std::lock_guard<std::mutex> lock(mutex);
  if (status == nullptr) status = new CudaStatus(ProbeCuda(ThisCudaRuntime()));
  return *status;
}

}  // namespace varlen
