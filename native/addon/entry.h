#pragma once

#include <napi.h>

#include <new>
#include <optional>

#include "addon/env.h"

// The border between JavaScript and C++. A native function takes its numbers from Env::args and its
// arrays as JavaScript arguments, and returns 0 when it worked, 1 when Env::error says why not.
namespace varlen::addon {

struct Arguments {
  static constexpr size_t kMax = 8;
  napi_env env;
  napi_value values[kMax];
  size_t count = kMax;
};

using EntryFn = bool (*)(Env& env, const Arguments& arguments);

// What a JavaScript number counts exactly.
inline constexpr double kMaxBytes = 9007199254740991.0;

// A device as a number: -1 the CPU, else a GPU's. None for a GPU that does not answer.
std::optional<Device> DeviceAt(Env& env, double number);

// Hands a new tensor to JavaScript, at result 0; always true.
bool Publish(Env& env, const Tensor& tensor);
// Notes the failure and returns none when it was disposed.
const Tensor* FindTensor(Env& env, const char* argument, double handle);

// Reads rank and dimensions at args. False when they are none, or when the bytes do not fit in 53
// bits.
bool ReadShape(const double* args, Tensor& tensor);
bool FailShape(Env& env);
// Notes the failure when the number names no element type.
bool ReadDType(Env& env, double arg, DType& dtype);

// Env::on_settled(id) is called when the stream has done what it has now, with the failure of the
// storage, if one is given and has failed by then.
bool SettleAfter(Env& env, const std::shared_ptr<Stream>& stream, double id, StorageRef storage);

// The stream that a tensor was last written by, where a call takes the number of a stream.
inline constexpr double kWriterStream = -1;

// No C++ exception crosses the border: running out of memory is an error like any other.
template <EntryFn kFn>
napi_value Entry(napi_env napi, napi_callback_info info) {
  Env& env = *Env::Of(napi);
  Arguments arguments{napi, {}, Arguments::kMax};
  void* op = nullptr;
  napi_get_cb_info(napi, info, &arguments.count, arguments.values, nullptr, &op);
  env.op = static_cast<const char*>(op);
  if (arguments.count > Arguments::kMax) arguments.count = Arguments::kMax;
  bool ok = false;
  try {
    ok = kFn(env, arguments);
  } catch (const std::bad_alloc&) {
    Fail(env, OutOfMemory());
  }
  napi_value result;
  napi_create_uint32(napi, ok ? 0 : 1, &result);
  return result;
}

// Registers the functions of one file each on `exports`.
void BindTensors(Napi::Env env, Napi::Object exports);
void BindStreams(Napi::Env env, Napi::Object exports);
void BindPinned(Napi::Env env, Napi::Object exports);
void BindDlpack(Napi::Env env, Napi::Object exports);
void BindIpc(Napi::Env env, Napi::Object exports);

// `op` is what errors call it.
template <EntryFn kFn>
void Bind(Napi::Env env, Napi::Object exports, const char* name, const char* op) {
  napi_value function;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, Entry<kFn>, const_cast<char*>(op), &function);
  exports.Set(name, Napi::Value(env, function));
}

}  // namespace varlen::addon
