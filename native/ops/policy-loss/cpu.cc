// The CPU implementation: core/loss/evaluate.cc does the loss; here, a gradient of the loss that is
// not 1.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/policy-loss/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/simd-inl.h"
//
#include <algorithm>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/policy-loss/policy-loss.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::policy_loss {
namespace HWY_NAMESPACE {

using namespace varlen::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

// to = factor * from for n elements.
template <class T>
void Scale(const float* from, float factor, int64_t n, T* to) {
  const Vector factors = hn::Set(Floats(), factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    StoreFromFloat(hn::Mul(LoadAsFloat(from + i), factors), to + i);
  }
  if (i < n) StoreFirst(hn::Mul(LoadFirst(from + i, n - i), factors), to + i, n - i);
}

Status ScaleAll(const Backward& params) {
  constexpr int64_t kPiece = 16384;  // elements
  const int64_t n = params.d_logprobs.shape[0];
  const float factor = params.d_loss.data<float>()[0];
  return DispatchDType<float, bfloat16, half>(
      params.gradient.dtype, "logprobs", [&]<class T>() HWY_ATTR {
        return ParallelFor((n + kPiece - 1) / kPiece, [&](int64_t piece, int) HWY_ATTR {
          const int64_t begin = piece * kPiece;
          Scale(params.d_logprobs.data<float>() + begin, factor, std::min(kPiece, n - begin),
                params.gradient.data<T>() + begin);
        });
      });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::policy_loss
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::policy_loss {
namespace {
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(ScaleAll);

template <class T>
T* DataOf(const Tensor& tensor) {
  return tensor ? tensor.data<T>() : nullptr;
}
}  // namespace

Status RunCpu(const Forward& params) {
  loss::Inputs in = params.batch.ToInputs(params.logprobs.shape[0]);
  in.logprobs =
      params.logprobs.storage->data() + params.logprobs.offset * SizeOf(params.logprobs.dtype);
  in.logprobs_dtype = params.logprobs.dtype;
  in.entropies = DataOf<float>(params.entropies);
  return loss::Evaluate(params.config, in, loss::OutputsOf(params));
}

Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::policy_loss
#endif
