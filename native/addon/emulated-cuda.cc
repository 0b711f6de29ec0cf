#include "addon/emulated-cuda.h"

#include <mutex>
#include <string>

#include "addon/env.h"
#include "core/cuda/fake/fake.h"

namespace varlen::addon {

void BindEmulatedCuda(Napi::Env env, Napi::Object exports) {
  static std::once_flag once;
  std::call_once(once, [] {
    ReplaceCudaRuntime(cuda::fake::Runtime());
    ReplaceCudaIpc(cuda::fake::Ipc());
  });
  exports.Set("emulatedCuda", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                const std::string command = info[0].As<Napi::String>();
                // Of this environment, as a runtime that forbids external ArrayBuffers.
                if (command.rfind("external ", 0) == 0) {
                  Env::Of(info.Env())->external_buffers = command == "external 1";
                  return Napi::String::New(info.Env(), "");
                }
                return Napi::String::New(info.Env(), cuda::fake::Command(command));
              }));
}

}  // namespace varlen::addon
