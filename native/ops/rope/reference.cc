#include "core/op_reference.h"
#include "ops/rope/rope.h"

namespace varlen::rope {
namespace {

void Rotate(const Tensor& from, const Tensor& to, const Rotation& rotation, double direction) {
  const int64_t heads = from.shape[1], head_dim = from.shape[2];
  const int64_t rotary_dim = rotation.table.shape[1], half = rotary_dim / 2;
  for (int64_t t = 0; t < from.shape[0]; ++t) {
    const float* table =
        rotation.table.data<float>() + rotation.position_ids.data()[t] * rotary_dim;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t read = t * from.strides[0] + head * from.strides[1];
      double* row = to.data<double>() + (t * heads + head) * head_dim;
      for (int64_t i = rotary_dim; i < head_dim; ++i) row[i] = ReadDouble(from, read + i);
      for (int64_t i = 0; i < half; ++i) {
        const int64_t first = rotation.interleaved ? 2 * i : i;
        const int64_t second = rotation.interleaved ? 2 * i + 1 : i + half;
        const double x1 = ReadDouble(from, read + first), x2 = ReadDouble(from, read + second);
        const double c = table[i], s = direction * table[half + i];
        row[first] = x1 * c - x2 * s;
        row[second] = x2 * c + x1 * s;
      }
    }
  }
}

}  // namespace

Status RunReference(const Forward& params) {
  Rotate(params.x, params.out, params.rotation, 1);
  return {};
}
Status RunReference(const Backward& params) {
  Rotate(params.d_out, params.dx, params.rotation, -1);
  return {};
}

}  // namespace varlen::rope
