#include "addon/emulated-cuda.h"

#include <mutex>
#include <string>

#include "core/cuda/fake/fake.h"

namespace varlen::addon {

void BindEmulatedCuda(Napi::Env env, Napi::Object exports) {
  static std::once_flag once;
  std::call_once(once, [] { ReplaceCudaRuntime(cuda::fake::Runtime()); });
  exports.Set("emulatedCuda", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                const std::string command = info[0].As<Napi::String>();
                return Napi::String::New(info.Env(), cuda::fake::Command(command));
              }));
}

}  // namespace varlen::addon
