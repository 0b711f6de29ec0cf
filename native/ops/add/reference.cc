#include "core/op_reference.h"
#include "ops/add/add.h"

namespace varlen::add {

Status RunReference(const Forward& params) {
  for (int64_t i = 0; i < params.a.size(); ++i) {
    params.out.data<double>()[i] = ReadDouble(params.a, i) + ReadDouble(params.b, i);
  }
  return {};
}

}  // namespace varlen::add
