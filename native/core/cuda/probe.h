#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cuda/api.h"

// Can this process use CUDA, and if not, why? Written without CUDA headers over the table of
// core/cuda/api.h, so that a made-up runtime drives every answer in the tests.
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

struct CudaStatus {
  CudaProblem problem = CudaProblem::kNone;
  std::string reason;       // a sentence for the user, empty when available
  int runtime_version = 0;  // 13000 is 13.0; 0: not asked
  int driver_version = 0;   // the newest CUDA the driver supports
  std::vector<CudaDevice> devices;

  bool available() const { return problem == CudaProblem::kNone; }
};

CudaStatus ProbeCuda(const CudaRuntime& runtime);

// ProbeCuda of this process's runtime, asked once, at the first call.
const CudaStatus& CudaStatusOfThisProcess();

// 12040 -> "12.4"
std::string CudaVersionName(int version);

}  // namespace varlen
