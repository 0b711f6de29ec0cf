#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "core/cuda/api.h"
#include "core/cuda/ipc.h"
#include "core/cuda/kernel.h"

// The table of api.h over the statically linked CUDA runtime. CMake says for which architectures
// the kernels were compiled.
namespace varlen {
namespace {

static_assert(cudaErrorInvalidValue == cuda::error::kInvalidValue &&
                  cudaErrorMemoryAllocation == cuda::error::kMemoryAllocation &&
                  cudaErrorInitializationError == cuda::error::kInitialization &&
                  cudaErrorInvalidDeviceFunction == cuda::error::kInvalidDeviceFunction &&
                  cudaErrorNoDevice == cuda::error::kNoDevice &&
                  cudaErrorNoKernelImageForDevice == cuda::error::kNoKernelImageForDevice &&
                  cudaErrorECCUncorrectable == cuda::error::kEccUncorrectable &&
                  cudaErrorUnsupportedPtxVersion == cuda::error::kUnsupportedPtxVersion &&
                  cudaErrorNotReady == cuda::error::kNotReady &&
                  cudaErrorIllegalAddress == cuda::error::kIllegalAddress &&
                  cudaErrorLaunchOutOfResources == cuda::error::kLaunchOutOfResources &&
                  cudaErrorLaunchTimeout == cuda::error::kLaunchTimeout &&
                  cudaErrorHardwareStackError == cuda::error::kHardwareStackError &&
                  cudaErrorLaunchFailure == cuda::error::kLaunchFailure &&
                  cudaErrorUnknown == cuda::error::kUnknown,
              "api.h spells these values out");

// The failure is answered: it must not stay for the next call that asks for the last one.
int Answer(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

cudaStream_t StreamOf(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t EventOf(void* event) { return static_cast<cudaEvent_t>(event); }

int RuntimeVersion(int* version) { return Answer(cudaRuntimeGetVersion(version)); }
int DriverVersion(int* version) { return Answer(cudaDriverGetVersion(version)); }

int DeviceCount(int* count) {
  const int error = Answer(cudaGetDeviceCount(count));
  if (error != cudaSuccess) *count = 0;
  return error;
}

int DeviceAt(CudaDevice* device, int index) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return Answer(error);
  device->name = properties.name;
  device->compute_major = properties.major;
  device->compute_minor = properties.minor;
  device->multiprocessors = properties.multiProcessorCount;
  device->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return cudaSuccess;
}

// Whether code of `arch` (CMake's way: 80, 86-real, 90a-real) runs on a device: machine code of the
// same major number and no higher minor one, PTX on anything that is not older, "a" on itself only.
bool Runs(const std::string& arch, int major, int minor) {
  const int number = std::atoi(arch.c_str()), own = 10 * major + minor;
  if (arch.find('a') < arch.find('-')) return number == own;
  if (arch.find("-real") == std::string::npos && number <= own) return true;
  return number / 10 == major && number <= own;
}

// cudaFuncGetAttributes would make a context, which takes half a gigabyte of every GPU that is only
// looked at.
int Kernel(int index) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  }
  if (error != cudaSuccess) return Answer(error);
  std::istringstream archs(VARLEN_BUILT_ARCHS);
  for (std::string arch; archs >> arch;) {
    if (Runs(arch, major, minor)) return cudaSuccess;
  }
  return cudaErrorNoKernelImageForDevice;
}

const char* ErrorName(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

int SetDevice(int index) { return Answer(cudaSetDevice(index)); }

int MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  size_t free = 0, total = 0;
  const int error = Answer(cudaMemGetInfo(&free, &total));
  *free_bytes = static_cast<int64_t>(free);
  *total_bytes = static_cast<int64_t>(total);
  return error;
}

int Allocate(void** data, int64_t bytes) {
  return Answer(cudaMalloc(data, static_cast<size_t>(bytes)));
}
int Release(void* data) { return Answer(cudaFree(data)); }
int AllocatePinned(void** data, int64_t bytes) {
  return Answer(cudaHostAlloc(data, static_cast<size_t>(bytes), cudaHostAllocPortable));
}
int ReleasePinned(void* data) { return Answer(cudaFreeHost(data)); }

int CreateStream(void** stream) {
  cudaStream_t made = nullptr;
  const int error = Answer(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  *stream = made;
  return error;
}
int DestroyStream(void* stream) { return Answer(cudaStreamDestroy(StreamOf(stream))); }

int CreateEvent(void** event) {
  cudaEvent_t made = nullptr;
  const int error = Answer(cudaEventCreateWithFlags(&made, cudaEventBlockingSync));
  *event = made;
  return error;
}
int DestroyEvent(void* event) { return Answer(cudaEventDestroy(EventOf(event))); }
int RecordEvent(void* event, void* stream) {
  return Answer(cudaEventRecord(EventOf(event), StreamOf(stream)));
}
int WaitEvent(void* stream, void* event) {
  return Answer(cudaStreamWaitEvent(StreamOf(stream), EventOf(event), 0));
}
int SynchronizeStream(void* stream) { return Answer(cudaStreamSynchronize(StreamOf(stream))); }
int SynchronizeEvent(void* event) { return Answer(cudaEventSynchronize(EventOf(event))); }
int ElapsedMs(float* ms, void* start, void* end) {
  return Answer(cudaEventElapsedTime(ms, EventOf(start), EventOf(end)));
}

int Copy(void* to, const void* from, int64_t bytes, cuda::CopyKind kind, void* stream) {
  constexpr cudaMemcpyKind kKinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                       cudaMemcpyDeviceToDevice};
  return Answer(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                kKinds[static_cast<int>(kind)], StreamOf(stream)));
}
int Fill(void* data, int byte, int64_t bytes, void* stream) {
  return Answer(cudaMemsetAsync(data, byte, static_cast<size_t>(bytes), StreamOf(stream)));
}

bool Has(const cuda::KernelImage& kernel) { return kernel.device != nullptr; }

// The driver's own function: the runtime has none for it, and linking libcuda would make the binary
// need a driver to load. Null before CUDA 12.
PFN_cuTensorMapEncodeTiled_v12000 EncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
  if (Answer(error) != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
}

CUtensorMapSwizzle SwizzleOf(simt::Swizzle swizzle) {
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B,
                                              CU_TENSOR_MAP_SWIZZLE_128B};
  return kSwizzles[static_cast<int>(swizzle)];
}

// CUresult and cudaError_t have the same numbers.
int Encode(simt::TensorMap* map, const simt::TensorMapShape& shape) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = EncodeTiled();
  if (encode == nullptr) return cudaErrorInvalidDeviceFunction;
  cuuint64_t size[simt::kMaxTensorMapRank], stride_bytes[simt::kMaxTensorMapRank];
  cuuint32_t box[simt::kMaxTensorMapRank], every[simt::kMaxTensorMapRank];
  for (int d = 0; d < shape.rank; ++d) {
    size[d] = static_cast<cuuint64_t>(shape.size[d]);
    box[d] = static_cast<cuuint32_t>(shape.box[d]);
    every[d] = 1;
    // Of dimensions 1 and up: dimension 0 is contiguous.
    if (d > 0) stride_bytes[d - 1] = static_cast<cuuint64_t>(shape.stride[d] * SizeOf(shape.dtype));
  }
  CUtensorMap encoded;
  static_assert(sizeof encoded == sizeof *map);
  const CUresult result =
      encode(&encoded, TypeOf(shape.dtype), static_cast<cuuint32_t>(shape.rank), shape.data, size,
             stride_bytes, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, SwizzleOf(shape.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  std::memcpy(map, &encoded, sizeof encoded);
  return static_cast<int>(result);
}

int Prepare(const cuda::KernelImage& kernel, int* resident) {
  if (kernel.device == nullptr) return cudaErrorInvalidDeviceFunction;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel.device, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(kernel.shared_bytes));
  if (error != cudaSuccess) return Answer(error);
  return Answer(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      resident, kernel.device, kernel.threads, static_cast<size_t>(kernel.shared_bytes)));
}

int LaunchKernel(const cuda::KernelImage& kernel, const cuda::LaunchShape& shape,
                 const void* params, void* stream) {
  if (kernel.device == nullptr) return cudaErrorInvalidDeviceFunction;
  void* arguments[] = {const_cast<void*>(params)};
  return Answer(cudaLaunchKernel(kernel.device, dim3(static_cast<unsigned>(shape.blocks)),
                                 dim3(static_cast<unsigned>(shape.threads)), arguments,
                                 static_cast<size_t>(shape.shared_bytes), StreamOf(stream)));
}

// VARLEN_CUBLASLT_PATH names the one file to try; "none" keeps our own kernels. Otherwise that of
// the toolkit this was built with goes first: what a driver is too old for does not open.
std::vector<std::string> CublasLtFiles() {
  const char* asked = std::getenv("VARLEN_CUBLASLT_PATH");
  if (asked != nullptr && asked[0] != '\0') {
    return std::string(asked) == "none" ? std::vector<std::string>{}
                                        : std::vector{std::string(asked)};
  }
  std::vector<std::string> files;
  for (int major : {CUDART_VERSION / 1000, 13, 12}) {
    files.push_back("libcublasLt.so." + std::to_string(major));
  }
  return files;
}

int Uuid(DeviceUuid* uuid, int index) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  static_assert(sizeof properties.uuid.bytes == sizeof *uuid);
  if (error == cudaSuccess) std::memcpy(uuid->data(), properties.uuid.bytes, sizeof *uuid);
  return Answer(error);
}

int ExportMemory(IpcHandle* handle, void* segment) {
  cudaIpcMemHandle_t made{};
  static_assert(sizeof made == sizeof *handle);
  const int error = Answer(cudaIpcGetMemHandle(&made, segment));
  std::memcpy(handle->data(), &made, sizeof made);
  return error;
}

int OpenMemory(void** segment, const IpcHandle& handle) {
  cudaIpcMemHandle_t known;
  std::memcpy(&known, handle.data(), sizeof known);
  return Answer(cudaIpcOpenMemHandle(segment, known, cudaIpcMemLazyEnablePeerAccess));
}

int CloseMemory(void* segment) { return Answer(cudaIpcCloseMemHandle(segment)); }

}  // namespace

CudaIpc LinkedCudaIpc() { return {Uuid, ExportMemory, OpenMemory, CloseMemory}; }

CudaRuntime LinkedCudaRuntime() {
  CudaRuntime runtime;
  runtime.runtime_version = RuntimeVersion;
  runtime.driver_version = DriverVersion;
  runtime.device_count = DeviceCount;
  runtime.device = DeviceAt;
  runtime.kernel = Kernel;
  runtime.error_name = ErrorName;
  runtime.set_device = SetDevice;
  runtime.memory_info = MemoryInfo;
  runtime.allocate = Allocate;
  runtime.release = Release;
  runtime.allocate_pinned = AllocatePinned;
  runtime.release_pinned = ReleasePinned;
  runtime.create_stream = CreateStream;
  runtime.destroy_stream = DestroyStream;
  runtime.create_event = CreateEvent;
  runtime.destroy_event = DestroyEvent;
  runtime.record_event = RecordEvent;
  runtime.wait_event = WaitEvent;
  runtime.synchronize_stream = SynchronizeStream;
  runtime.synchronize_event = SynchronizeEvent;
  runtime.elapsed_ms = ElapsedMs;
  runtime.copy = Copy;
  runtime.fill = Fill;
  runtime.has = Has;
  runtime.encode = Encode;
  runtime.prepare = Prepare;
  runtime.launch = LaunchKernel;
  runtime.cublas_lt = CublasLtFiles;
  return runtime;
}

}  // namespace varlen
