#pragma once

#include "addon/bind.h"
#include "ops/add/add.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"
#include "ops/cross-entropy/cross-entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/generalized-jsd/generalized-jsd.h"
#include "ops/linear/linear.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"
#include "ops/rms-norm/rms-norm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"
#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::addon {

// One line per op; src/native/binding.ts has the same list.
using Ops = OpList<                                                                          //
    add::Forward,                                                                            //
    cross_entropy::Forward,                                                                  //
    cross_entropy::Backward,                                                                 //
    cross_entropy_from_hidden::Forward,                                                      //
    cross_entropy_from_hidden::Backward,                                                     //
    embedding::Forward,                                                                      //
    embedding::Backward,                                                                     //
    generalized_jsd::Forward, generalized_jsd::Backward, linear::Forward,                    //
    linear::Backward,                                                                        //
    policy_loss_from_hidden::Forward, policy_loss_from_hidden::Backward, rms_norm::Forward,  //
    rms_norm::Backward,                                                                      //
    rope::Forward,                                                                           //
    rope::Backward,                                                                          //
    swiglu::Forward,                                                                         //
    swiglu::Backward,                                                                        //
    varlen_attention::Forward,                                                               //
    varlen_attention::Backward>;

}  // namespace varlen::addon
