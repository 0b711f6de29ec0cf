#pragma once

#include "addon/bind.h"
#include "ops/sparse-prefill/sparse-prefill.h"
#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::addon {

// One line per op; src/native/binding.ts has the same list.
using Ops = OpList<             //
    sparse_prefill::Forward,    //
    sparse_prefill::Plan,       //
    sparse_prefill::Count,      //
    sparse_prefill::Mask,       //
    sparse_prefill::Indices,    //
    sparse_prefill::Merge,      //
    varlen_attention::Forward,  //
    varlen_attention::Backward>;

}  // namespace varlen::addon
