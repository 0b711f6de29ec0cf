#include "addon/info.h"

#include "core/cuda/probe.h"
#include "core/isa.h"

namespace varlen::addon {
namespace {

// { isa, isaNote, cudaProblem, cudaReason, runtimeVersion, driverVersion, devices }
Napi::Value Info(const Napi::CallbackInfo& call) {
  const CudaStatus& cuda = CudaStatusOfThisProcess();
  Napi::Env env = call.Env();
  Napi::Array devices = Napi::Array::New(env);
  for (const CudaDevice& device : cuda.devices) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", device.name);
    entry.Set("computeCapability",
              std::to_string(device.compute_major) + "." + std::to_string(device.compute_minor));
    entry.Set("multiprocessors", device.multiprocessors);
    entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
    devices.Set(devices.Length(), entry);
  }
  Napi::Object info = Napi::Object::New(env);
  info.Set("isa", NameOf(ActiveIsa()));
  info.Set("isaNote", IsaNote());
  info.Set("cudaProblem", CudaProblemName(cuda.problem));
  info.Set("cudaReason", cuda.reason);
  info.Set("runtimeVersion", cuda.runtime_version);
  info.Set("driverVersion", cuda.driver_version);
  info.Set("devices", devices);
  return info;
}

}  // namespace

void BindInfo(Napi::Env env, Napi::Object exports) {
  exports.Set("info", Napi::Function::New(env, Info));
}

}  // namespace varlen::addon
