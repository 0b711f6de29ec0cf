#pragma once

#include "addon/bind.h"
#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::addon {

// One line per op; src/native/binding.ts has the same list.
using Ops = OpList<             //
    varlen_attention::Forward,  //
    varlen_attention::Backward>;

}  // namespace varlen::addon
