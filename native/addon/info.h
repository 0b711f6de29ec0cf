#pragma once

#include <napi.h>

namespace varlen::addon {

// What this machine offers, for deviceInfo().
void BindInfo(Napi::Env env, Napi::Object exports);

}  // namespace varlen::addon
