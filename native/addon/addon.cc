#include <napi.h>

#include <algorithm>

#include "addon/emulated-cuda.h"
#include "addon/entry.h"
#include "addon/info.h"
#include "addon/ops.h"
#include "core/parallel.h"

// Registration only. Everything an environment owns lives in its Env.
namespace varlen::addon {
namespace {

// arguments: the op's index in ops.h, then its host arrays.
bool CallByIndex(Env& env, const Arguments& arguments) {
  uint32_t index = 0;
  if (arguments.count == 0 ||
      napi_get_value_uint32(arguments.env, arguments.values[0], &index) != napi_ok ||
      index >= Ops::kCount) {
    return Fail(env, {Code::kType, "op", "is not an op's index", {}});
  }
  return Ops::kCalls[index](env, arguments.env, arguments.values + 1, arguments.count - 1);
}

// result: threads. args: the new number, 0 leaves it.
bool Threads(Env& env, const Arguments&) {
  if (env.args[0] > 0) SetNumThreads(static_cast<int>(std::min(env.args[0], 1024.0)));
  env.result[0] = NumThreads();
  return true;
}

// Float64Array over memory that lives as long as the environment.
double* Shared(Napi::Env env, Napi::Object exports, const char* name, size_t slots) {
  Napi::Float64Array array = Napi::Float64Array::New(env, slots);
  exports.Set(name, array);
  return array.Data();
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  Env* self = new Env(env);
  env.SetInstanceData(self);
  exports.Set("version", VARLEN_VERSION);
  self->args = Shared(env, exports, "args", kArgSlots);
  self->result = Shared(env, exports, "result", kResultSlots);
  exports.Set("ops", Ops::Describe(env));
  Bind<CallByIndex>(env, exports, "call", "call");
  exports.Set("takeError", Napi::Function::New(env, [self](const Napi::CallbackInfo& info) {
                return ErrorOf(info.Env(), self->error);
              }));
  exports.Set("onSettled", Napi::Function::New(env, [self](const Napi::CallbackInfo& info) {
                self->on_settled = Napi::Persistent(info[0].As<Napi::Function>());
              }));
  Bind<Threads>(env, exports, "threads", "setNumThreads");
  BindInfo(env, exports);
  BindTensors(env, exports);
  BindStreams(env, exports);
  BindPinned(env, exports);
  BindDlpack(env, exports);
  BindIpc(env, exports);
#if defined(VARLEN_EMULATED_CUDA)
  BindEmulatedCuda(env, exports);
#endif
  return exports;
}

}  // namespace
}  // namespace varlen::addon

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) {
  return varlen::addon::Init(env, exports);
}
NODE_API_MODULE(NODE_GYP_MODULE_NAME, InitAddon)
