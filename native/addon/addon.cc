#include <napi.h>

#include "core/cuda/probe.h"

namespace {

Napi::Object Init(Napi::Env, Napi::Object exports) {
  exports.Set("version", VARLEN_VERSION);
  exports.Set("cuda", varlen::CudaProblemName(varlen::CudaStatusOfThisProcess().problem));
  return exports;
}

}  // namespace

NODE_API_MODULE(varlen, Init)
