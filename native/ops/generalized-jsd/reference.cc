#include "core/jsd-reference.h"
#include "ops/generalized-jsd/generalized-jsd.h"

namespace varlen::generalized_jsd {
namespace {

auto RawLogitsOf(const Tensor& logits) {
  return [&logits](int64_t t) {
    std::vector<double> raw;
    for (int64_t v = 0; v < logits.shape[1]; ++v) {
      raw.push_back(ReadDouble(logits, t * logits.strides[0] + v));
    }
    return raw;
  };
}

}  // namespace

Status RunReference(const Forward& p) {
  return jsd_reference::Forward(p.options, p.words, p.tokens, p.student.shape[0],
                                RawLogitsOf(p.student), RawLogitsOf(p.teacher), p.out);
}

Status RunReference(const Backward& p) {
  double* to = p.d_student.data<double>();
  std::fill_n(to, p.d_student.size(), 0.0);
  jsd_reference::Backward(p.options, p.upstream, p.student.shape[0], RawLogitsOf(p.student),
                          RawLogitsOf(p.teacher), [&](int64_t t, const std::vector<double>& du) {
                            std::copy(du.begin(), du.end(), to + t * p.student.shape[1]);
                          });
  return {};
}

}  // namespace varlen::generalized_jsd
