#pragma once

#include "addon/bind.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::addon {

// One line per op; src/native/binding.ts has the same list.
using Ops = OpList<                      //
    varlen_attention::Forward,           //
    varlen_attention::Backward,          //
    cross_entropy::Forward,              //
    cross_entropy::Backward,             //
    cross_entropy_from_hidden::Forward,  //
    cross_entropy_from_hidden::Backward>;

}  // namespace varlen::addon
