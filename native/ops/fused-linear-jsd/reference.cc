#include "core/jsd-reference.h"
#include "core/linear-head-reference.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"

namespace varlen::fused_linear_jsd {
namespace {

auto RawLogitsOf(const LinearHead& head) {
  return [&head](int64_t t) { return ReferenceLogits(head, t); };
}

}  // namespace

Status RunReference(const Forward& p) {
  return jsd_reference::Forward(p.options, p.words, p.tokens, p.student.total_tokens(),
                                RawLogitsOf(p.student), RawLogitsOf(p.teacher.head), p.out);
}

Status RunReference(const Backward& p) {
  const ReferenceHeadGradients gradients(p.student, p.gradients);
  jsd_reference::Backward(p.options, p.upstream, p.student.total_tokens(), RawLogitsOf(p.student),
                          RawLogitsOf(p.teacher.head),
                          [&](int64_t t, const std::vector<double>& du) { gradients.Add(t, du); });
  return {};
}

}  // namespace varlen::fused_linear_jsd
