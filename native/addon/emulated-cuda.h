#pragma once

#include <napi.h>

namespace varlen::addon {

// Of the binary that tests load: puts the emulated GPU of core/cuda/fake in the place of the linked
// CUDA runtime, and exports emulatedCuda(command).
void BindEmulatedCuda(Napi::Env env, Napi::Object exports);

}  // namespace varlen::addon
