#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Can this process use CUDA, and if not, why? Written without CUDA headers over a table of function
// pointers, so that a made-up runtime drives every answer in the tests.
namespace varlen {

// In the order in which they are decided.
enum class CudaProblem : uint8_t {
  kNone,
  kNotBuilt,
  kDisabled,
  kNoDriver,
  kDriverTooOld,
  kNoDevice,
  kArchUnsupported,
  kInitFailed,
};

// "NO_DRIVER" and so on: CudaUnavailableCode of the TypeScript side. "" for kNone.
const char* CudaProblemName(CudaProblem problem);

struct CudaDevice {
  std::string name;
  int compute_major = 0;  // 9 and 0 for compute capability 9.0
  int compute_minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};

struct CudaStatus {
  CudaProblem problem = CudaProblem::kNone;
  std::string reason;       // a sentence for the user, empty when available
  int runtime_version = 0;  // 13000 is 13.0; 0: not asked
  int driver_version = 0;   // the newest CUDA the driver supports
  std::vector<CudaDevice> devices;

  bool available() const { return problem == CudaProblem::kNone; }
};

// The few calls of the CUDA runtime that the probe makes. None creates a context on a device.
// Results are cudaError_t as int.
struct CudaRuntime {
  const char* not_built = nullptr;  // why there is no runtime; the calls below are then null
  int (*runtime_version)(int* version) = nullptr;
  int (*driver_version)(int* version) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device)(CudaDevice* device, int index) = nullptr;
  // Asks for the attributes of one kernel of this build; null when the build has no kernels.
  int (*kernel)(int index) = nullptr;
  const char* (*error_name)(int error) = nullptr;
};

CudaStatus ProbeCuda(const CudaRuntime& runtime);

// ProbeCuda of the linked runtime, asked once per process, at the first call.
const CudaStatus& CudaStatusOfThisProcess();

// The runtime that this binary was linked with: runtime.cc with CUDA, cuda_stub.cc without.
CudaRuntime LinkedCudaRuntime();

// 12040 -> "12.4"
std::string CudaVersionName(int version);

}  // namespace varlen
