#include "core/cross-entropy-reference.h"
#include "core/linear-head-reference.h"
#include "ops/cross-entropy-from-hidden/cross-entropy-from-hidden.h"

namespace varlen::cross_entropy_from_hidden {

Status RunReference(const Forward& p) {
  cross_entropy_reference::Forward(
      p.tokens, p.options, p.head.total_tokens(),
      [&](int64_t t) { return ReferenceLogits(p.head, t); }, p.out);
  return {};
}

Status RunReference(const Backward& p) {
  const ReferenceHeadGradients gradients(p.head, p.gradients);
  cross_entropy_reference::Backward(
      p.tokens, p.options, p.upstream, p.head.total_tokens(),
      [&](int64_t t) { return ReferenceLogits(p.head, t); },
      [&](int64_t t, const std::vector<double>& du) { gradients.Add(t, du); });
  return {};
}

}  // namespace varlen::cross_entropy_from_hidden
