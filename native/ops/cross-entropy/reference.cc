#include "core/cross-entropy-reference.h"
#include "ops/cross-entropy/cross-entropy.h"

namespace varlen::cross_entropy {
namespace {

template <class Params>
auto RawLogitsOf(const Params& p) {
  return [&p](int64_t t) {
    std::vector<double> raw;
    for (int64_t v = 0; v < p.logits.shape[1]; ++v) {
      raw.push_back(ReadDouble(p.logits, t * p.logits.strides[0] + v));
    }
    return raw;
  };
}

}  // namespace

Status RunReference(const Forward& p) {
  cross_entropy_reference::Forward(p.tokens, p.options, p.logits.shape[0], RawLogitsOf(p), p.out);
  return {};
}

Status RunReference(const Backward& p) {
  double* to = p.d_logits.data<double>();
  std::fill_n(to, p.d_logits.size(), 0.0);
  cross_entropy_reference::Backward(p.tokens, p.options, p.upstream, p.logits.shape[0],
                                    RawLogitsOf(p), [&](int64_t t, const std::vector<double>& du) {
                                      std::copy(du.begin(), du.end(), to + t * p.logits.shape[1]);
                                    });
  return {};
}

}  // namespace varlen::cross_entropy
