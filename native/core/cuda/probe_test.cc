#include "core/cuda/probe.h"

#include <doctest/doctest.h>

#include <cstdlib>

namespace varlen {
namespace {

// A made-up machine: what its driver, runtime and devices answer.
struct Machine {
  int runtime_version = 13000;
  int driver_version = 13000;
  int device_count = 1;
  int device_count_error = 0;
  int device_error = 0;
  int kernel_error = 0;
  int compute_major = 9;
  int calls = 0;
};
Machine machine;

CudaRuntime RuntimeOf(const Machine& made_up) {
  machine = made_up;
  CudaRuntime runtime;
  runtime.runtime_version = [](int* version) {
    *version = machine.runtime_version;
    return 0;
  };
  runtime.driver_version = [](int* version) {
    *version = machine.driver_version;
    return 0;
  };
  runtime.device_count = [](int* count) {
    ++machine.calls;
    *count = machine.device_count;
    return machine.device_count_error;
  };
  runtime.device = [](CudaDevice* device, int index) {
    device->name = "Device " + std::to_string(index);
    device->compute_major = machine.compute_major;
    return machine.device_error;
  };
  runtime.kernel = [](int) { return machine.kernel_error; };
  runtime.error_name = [](int error) {
    return error == 999 ? "cudaErrorUnknown" : "cudaErrorNoKernelImageForDevice";
  };
  return runtime;
}

CudaStatus Probe(const Machine& made_up) { return ProbeCuda(RuntimeOf(made_up)); }

TEST_CASE("a working driver, device and kernel are available") {
  const CudaStatus status = Probe({.device_count = 2});
  CHECK(status.available());
  CHECK(status.reason == "");
  CHECK(status.devices.size() == 2);
  CHECK(status.devices[1].name == "Device 1");
  CHECK(status.runtime_version == 13000);
}

TEST_CASE("a build without CUDA says NOT_BUILT with the build's reason and calls nothing") {
  CudaRuntime runtime;  // every call is null
  runtime.not_built = "nvcc not found";
  const CudaStatus status = ProbeCuda(runtime);
  CHECK(status.problem == CudaProblem::kNotBuilt);
  CHECK(status.reason == "this binary was built without CUDA: nvcc not found");
}

TEST_CASE("VARLEN_DISABLE_CUDA=1 is DISABLED and nothing is asked") {
  setenv("VARLEN_DISABLE_CUDA", "1", 1);
  const CudaStatus status = Probe({});
  unsetenv("VARLEN_DISABLE_CUDA");
  CHECK(status.problem == CudaProblem::kDisabled);
  CHECK(machine.calls == 0);
}

TEST_CASE("driver version 0 is NO_DRIVER, although the runtime calls it an old driver") {
  const CudaStatus status =
      Probe({.driver_version = 0, .device_count = 0, .device_count_error = 35});
  CHECK(status.problem == CudaProblem::kNoDriver);
  CHECK(machine.calls == 0);
}

TEST_CASE("a driver of an older CUDA major is DRIVER_TOO_OLD and names both versions") {
  const CudaStatus status = Probe({.driver_version = 12040});
  CHECK(status.problem == CudaProblem::kDriverTooOld);
  CHECK(status.reason ==
        "driver supports CUDA 12.4, this build needs 13.0: driver 580 or newer, or "
        "`VARLEN_CUDA=ON npx varlen build` with a CUDA 12 toolkit");
}

TEST_CASE("a driver of the same major and an older minor is good enough") {
  CHECK(Probe({.runtime_version = 13010, .driver_version = 13000}).available());
}

TEST_CASE("no device is NO_DEVICE, told by error or by count") {
  CHECK(Probe({.device_count = 0, .device_count_error = 100}).problem == CudaProblem::kNoDevice);
  CHECK(Probe({.device_count = 0}).problem == CudaProblem::kNoDevice);
}

TEST_CASE("NO_DEVICE quotes CUDA_VISIBLE_DEVICES when it is set") {
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  const CudaStatus status = Probe({.device_count = 0, .device_count_error = 100});
  unsetenv("CUDA_VISIBLE_DEVICES");
  CHECK(status.reason.find("CUDA_VISIBLE_DEVICES is \"\"") != std::string::npos);
}

TEST_CASE("devices below compute capability 8.0 are ARCH_UNSUPPORTED and are named") {
  const CudaStatus status = Probe({.compute_major = 7});
  CHECK(status.problem == CudaProblem::kArchUnsupported);
  CHECK(status.reason.find("Device 0 (7.0)") != std::string::npos);
}

TEST_CASE("a device that no embedded kernel fits is ARCH_UNSUPPORTED") {
  CHECK(Probe({.kernel_error = 209}).problem == CudaProblem::kArchUnsupported);
  CHECK(Probe({.kernel_error = 222}).problem == CudaProblem::kArchUnsupported);
}

TEST_CASE("anything else is INIT_FAILED with CUDA's name for it") {
  for (const Machine& made_up : {Machine{.device_count_error = 999}, Machine{.device_error = 999},
                                 Machine{.kernel_error = 999}}) {
    const CudaStatus status = Probe(made_up);
    CHECK(status.problem == CudaProblem::kInitFailed);
    CHECK(status.reason.find("cudaErrorUnknown") != std::string::npos);
  }
}

TEST_CASE("a build with the runtime but without kernels ends as NOT_BUILT on a working machine") {
  CudaRuntime runtime = RuntimeOf({});
  runtime.kernel = nullptr;
  const CudaStatus status = ProbeCuda(runtime);
  CHECK(status.problem == CudaProblem::kNotBuilt);
  CHECK(status.reason == "this build has no CUDA kernels yet");
  CHECK(status.driver_version == 13000);
}

TEST_CASE("every problem has the name that the TypeScript side lists") {
  CHECK(std::string(CudaProblemName(CudaProblem::kNotBuilt)) == "NOT_BUILT");
  CHECK(std::string(CudaProblemName(CudaProblem::kDisabled)) == "DISABLED");
  CHECK(std::string(CudaProblemName(CudaProblem::kNoDriver)) == "NO_DRIVER");
  CHECK(std::string(CudaProblemName(CudaProblem::kDriverTooOld)) == "DRIVER_TOO_OLD");
  CHECK(std::string(CudaProblemName(CudaProblem::kNoDevice)) == "NO_DEVICE");
  CHECK(std::string(CudaProblemName(CudaProblem::kArchUnsupported)) == "ARCH_UNSUPPORTED");
  CHECK(std::string(CudaProblemName(CudaProblem::kInitFailed)) == "INIT_FAILED");
}

TEST_CASE("version integers decode as CUDA encodes them") {
  CHECK(CudaVersionName(13000) == "13.0");
  CHECK(CudaVersionName(12040) == "12.4");
  CHECK(CudaVersionName(11080) == "11.8");
}

TEST_CASE("the probe of this process is made once") {
  CHECK(&CudaStatusOfThisProcess() == &CudaStatusOfThisProcess());
}

}  // namespace
}  // namespace varlen
