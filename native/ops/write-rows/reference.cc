#include "core/op_reference.h"
#include "ops/write-rows/write-rows.h"

namespace varlen::write_rows {

Status RunReference(const Forward& params) {
  const int64_t width = params.values.shape[1];
  for (int64_t t = 0; t < params.rows.size(); ++t) {
    for (int64_t c = 0; c < width; ++c) {
      params.target[0].data<double>()[params.rows.data()[t] * width + c] =
          ReadDouble(params.values, t * width + c);
    }
  }
  return {};
}

}  // namespace varlen::write_rows
